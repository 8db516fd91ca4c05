import pytest
import torch

from picture_models import batch, resnet, vit
from potstill.errors import InputError, RecipeError, ShapeError
from potstill.losses import instance_alignment, kd_kl, mix_distribution, weighted_feature_alignment
from potstill.objectives import WebDistillObjective
from potstill.students import share_classifier
from potstill.teachers import LiveTeacher
from potstill.train import DistillModule

WEIGHT = torch.tensor([0.9, 0.2, 0.5, 0.7])


def built(student=None, **options):
    objective = WebDistillObjective("web", **options)
    teacher = vit(seed=1)
    torch.manual_seed(0)
    student = student or share_classifier(resnet(), teacher)
    objective.meet(student, {"teacher": teacher})
    module = DistillModule(student, [objective])
    live = LiveTeacher(teacher, outputs=module.teacher_outputs, taps=module.teacher_taps)
    module.build_parts(rows(), live.signal(rows()))
    return module.eval(), live, objective


def rows(n=4):
    return {**batch(n), "sample_weight": WEIGHT[:n]}


def test_without_its_further_terms_it_is_plain_distillation_in_one_pass():
    module, live, objective = built(alignment=0, contrast=0, weights=None)
    passes = []
    module.student.register_forward_hook(lambda *args: passes.append(1))
    total = module(batch(), live.signal(batch())).totals["web"]
    assert len(passes) == 1
    assert objective.second_view(batch()) is None
    student = module.student(pixel_values=batch()["pixel_values"]).logits
    exact = kd_kl(student, live.signal(batch()).outputs["logits"], temperature=4.0)
    torch.testing.assert_close(total / 4, exact.detach())


def test_the_objective_is_distillation_on_both_views_plus_its_terms():
    module, live, objective = built(alignment=0.7, contrast=0.3)
    torch.manual_seed(5)
    total = module(rows(), live.signal(rows())).totals["web"] / 4
    torch.manual_seed(5)
    lam = torch.distributions.Beta(torch.full((4,), 0.1), torch.full((4,), 0.1)).sample()
    perm = torch.randperm(4)
    x = rows()["pixel_values"]
    again = mix_distribution(x, perm, lam)
    assert torch.equal(live.signal(rows()).outputs["logits"], live.signal({"pixel_values": x}).outputs["logits"])
    one, two = module.observe({"pixel_values": x}), module.observe({"pixel_values": again})
    teacher = live.signal(rows())
    kd = [kd_kl(view.outputs["logits"], teacher.outputs["logits"], temperature=4.0) for view in (one, two)]
    features = [view.tapped[objective.features] for view in (one, two)]
    target = teacher.tapped[objective.teacher_features]
    exact = (
        sum(kd) / 2
        + 0.7 * weighted_feature_alignment(features[0], target, WEIGHT)
        + 0.3 * instance_alignment(*features, temperature=0.5)
    )
    torch.testing.assert_close(total, exact.detach())


def test_the_restyled_view_is_drawn_anew_and_repeats_with_the_generator():
    _, _, objective = built()
    torch.manual_seed(1)
    first, second = (objective.second_view(batch())["pixel_values"] for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(objective.second_view(batch())["pixel_values"], first)
    assert not torch.equal(first, second)
    assert torch.equal(objective.second_view(batch())["labels"], batch()["labels"])


def test_an_untrusted_image_moves_no_feature():
    module, live, objective = built(contrast=0)
    given = {**rows(), "sample_weight": torch.tensor([1.0, 0.0, 1.0, 1.0])}
    spoilt = {**given, "pixel_values": given["pixel_values"].clone()}
    values = []
    for each in (given, spoilt):
        signal = live.signal(each)
        if each is spoilt:
            signal.tapped[objective.teacher_features][1] += 100
        values.append(module(each, signal).loss)
    torch.testing.assert_close(*values)


def test_the_trust_of_images_has_to_be_there_unless_all_weigh_alike():
    module, live, _ = built(contrast=0)
    with pytest.raises(InputError, match="web_instances"):
        module(batch(), live.signal(batch()))
    alike = built(contrast=0, weights=None)[0]
    ones = {**batch(), "sample_weight": torch.ones(4)}
    signal = live.signal(batch())
    torch.testing.assert_close(alike(batch(), signal).loss, built(contrast=0)[0](ones, signal).loss)


def test_features_before_any_layer_can_be_named():
    student = resnet(width=16)
    module, live, objective = built(student, features="classifier.1@input", contrast=0)
    assert objective.teacher_features == "classifier@input"
    assert torch.isfinite(module(rows(), live.signal(rows())).loss)


def test_the_value_of_a_split_batch_is_the_mean_over_its_parts():
    module, live, objective = built(contrast=0)
    assert objective.batch_coupled
    halves = [{key: value[i : i + 2] for key, value in rows().items()} for i in (0, 2)]
    counts = {"web": torch.tensor(4.0)}
    parts = [module(half, live.signal(half), None, counts).loss for half in halves]
    alone = [module(half, live.signal(half)).loss for half in halves]
    torch.testing.assert_close(sum(parts), sum(alone) / 2)


def test_a_single_image_has_nothing_to_be_contrasted_with():
    module, live, _ = built()
    with pytest.raises(ShapeError, match="n >= 2"):
        module(rows(1), live.signal(rows(1)))


def test_wrong_settings_and_models_without_what_is_needed_are_refused():
    with pytest.raises(RecipeError, match="no shared classifier"):
        built(resnet())
    with pytest.raises(InputError, match="style"):
        WebDistillObjective("web", style=0)
    with pytest.raises(RecipeError, match=r"web\.alignment"):
        WebDistillObjective("web", alignment=-1)
    module, live, _ = built(pixels="pictures")
    with pytest.raises(RecipeError, match='no "pictures"'):
        module(rows(), live.signal(rows()))
