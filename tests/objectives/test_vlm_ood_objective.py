import pytest
import torch
from safetensors.torch import save_file

from picture_models import batch, resnet, vit
from potstill.errors import InputError, RecipeError
from potstill.losses import caption_contrastive_loss, vlm_ood_losses
from potstill.objectives import VlmOodObjective
from potstill.students import share_classifier
from potstill.teachers import LiveTeacher
from potstill.train import DistillModule

OPTIONS = {
    "on": "classifier.1@input",
    "teacher_on": "classifier@input",
    "labels": "labels",
    "text": "classifier.weight",
}


def built(student=None, rows=None, **options):
    objective = VlmOodObjective("vlm", **{**OPTIONS, **options})
    student, teacher, rows = student or resnet(), vit(seed=1), rows or batch()
    objective.meet(student, {"teacher": teacher})
    module = DistillModule(student, [objective])
    live = LiveTeacher(teacher, outputs=module.teacher_outputs, taps=module.teacher_taps)
    module.build_parts(rows, live.signal(rows))
    return module.eval(), live, teacher, objective


def test_the_objective_is_the_sum_of_the_four_terms_through_a_trained_head():
    module, live, teacher, objective = built(k=3, tau=0.2, filter_misaligned=False)
    output = module(batch(), live.signal(batch()))
    part = module.part_of(objective)
    assert torch.equal(part.text, teacher.classifier.weight)
    assert part.head.weight.shape == (16, 8)
    student = part.head(module.observe(batch()).tapped[OPTIONS["on"]])
    image = live.signal(batch()).tapped[OPTIONS["teacher_on"]]
    options = {"k": 3, "tau": 0.2, "filter_misaligned": False}
    terms = vlm_ood_losses(student, image, part.text, batch()["labels"], **options)
    torch.testing.assert_close(output.totals["vlm"] / 4, terms["total"].detach())
    output.loss.backward()
    assert part.head.weight.grad.abs().sum() > 0
    assert not any(name.endswith("text") for name, _ in module.named_parameters())


@pytest.mark.parametrize("term", ["cls", "vlalign", "mse", "cst"])
def test_each_term_can_be_had_alone(term):
    module, live, _, objective = built(terms=[term], filter_misaligned=False)
    student = module.part_of(objective).head(module.observe(batch()).tapped[OPTIONS["on"]])
    image = live.signal(batch()).tapped[OPTIONS["teacher_on"]]
    text = module.part_of(objective).text
    terms = vlm_ood_losses(student, image, text, batch()["labels"], filter_misaligned=False)
    torch.testing.assert_close(module(batch(), live.signal(batch())).totals["vlm"] / 4, terms[term].detach())


def test_images_without_a_label_count_where_none_is_needed():
    rows = {**batch(), "labels": torch.tensor([0, -100, 2, -100])}
    module, live, _, objective = built(rows=rows, terms=["cls", "mse"])
    student = module.part_of(objective).head(module.observe(rows).tapped[OPTIONS["on"]])
    image, text = live.signal(rows).tapped[OPTIONS["teacher_on"]], module.part_of(objective).text
    known = rows["labels"] != -100
    some = vlm_ood_losses(student[known], image[known], text, rows["labels"][known])
    all_of_them = vlm_ood_losses(student, image, text, rows["labels"].clamp_min(0))
    expected = some["cls"] + all_of_them["mse"]
    torch.testing.assert_close(module(rows, live.signal(rows)).totals["vlm"] / 4, expected.detach())


def test_captions_are_a_further_term():
    rows = {**batch(), "caption": torch.randn(4, 16, generator=torch.Generator().manual_seed(0))}
    with_captions, live, _, objective = built(rows=rows, terms=["mse"], captions="caption", caption_tau=0.5)
    without = built(rows=rows, terms=["mse"])[0]
    student = with_captions.part_of(objective).head(with_captions.observe(rows).tapped[OPTIONS["on"]])
    extra = caption_contrastive_loss(student, rows["caption"], rows["labels"], 0.5)
    gap = [module(rows, live.signal(rows)).totals["vlm"] / 4 for module in (with_captions, without)]
    torch.testing.assert_close(gap[0] - gap[1], extra.detach())
    with pytest.raises(RecipeError, match='no "caption"'):
        with_captions(batch(), live.signal(batch()))


def test_a_student_with_the_teachers_classifier_needs_no_head():
    student = share_classifier(resnet(), vit(seed=1), directions=True)
    module, live, _, objective = built(student, on="classifier.1.projector@output")
    assert isinstance(module.part_of(objective).head, torch.nn.Identity)
    module(batch(), live.signal(batch())).loss.backward()
    assert student.classifier[1].projector.weight.grad.abs().sum() > 0


def test_texts_come_from_a_file_too(tmp_path):
    text = torch.randn(5, 16)
    save_file({"text": text}, tmp_path / "texts.safetensors")
    module, _, _, objective = built(text=str(tmp_path / "texts.safetensors"))
    assert torch.equal(module.part_of(objective).text, text)
    save_file({"words": text}, tmp_path / "other.safetensors")
    with pytest.raises(RecipeError, match='no tensor "text"'):
        built(text=str(tmp_path / "other.safetensors"))
    with pytest.raises(RecipeError, match="no such file"):
        built(text=str(tmp_path / "none.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RecipeError, match="cannot be read"):
        built(text=str(tmp_path / "broken.safetensors"))


def test_the_value_of_a_split_batch_is_the_mean_over_its_parts():
    """Negatives are those of the micro-batch: what a page says of accumulation."""
    module, live, _, objective = built(terms=["cst"])
    assert objective.batch_coupled
    halves = [batch(2), batch(2, start=2)]
    counts = {"vlm": torch.tensor(4.0)}
    parts = [module(half, live.signal(half), None, counts).loss for half in halves]
    alone = [module(half, live.signal(half)).loss for half in halves]
    torch.testing.assert_close(sum(parts), sum(alone) / 2)
    assert not torch.isclose(sum(parts), module(batch(), live.signal(batch())).loss)


def test_wrong_settings_are_refused_by_name():
    for options, message in (
        ({"terms": ["clss"]}, '"cls"'),
        ({"terms": []}, "choice of terms"),
        ({"head": "mlp"}, "auto, linear or none"),
        ({"text": "classifier.weigth"}, "classifier.weight"),
        ({"text": "vit.layernorm.weight"}, r"\[classes, 16\]"),
    ):
        with pytest.raises(RecipeError, match=message):
            built(**options)
    objective = VlmOodObjective("vlm", **OPTIONS)
    with pytest.raises(InputError, match="meet"):
        objective.build_part(None, None)
