"""LELP in training: what the survey finds, what is trained on it, and that it is kept."""

import pytest
import torch
from small_nets import Net, Numbers, batch_of, collate, seen, taught, trainer

from potstill.errors import InputError, RecipeError
from potstill.losses import fit_lelp, lelp_loss, lelp_targets
from potstill.objectives import LELPObjective
from potstill.taps import Signal

TAP = "head@input"


def lelp(teacher, **options):
    objective = LELPObjective("lelp", TAP, **options)
    objective.meet(None, {"teacher": teacher})
    return objective


def student(S=2):
    return Net(5, 3 * S, seed=1)


def shown(teacher, batch):
    """What a teacher shows of a batch: embedding and logits."""
    teacher.eval()
    with torch.no_grad():
        x = teacher.second(torch.relu(teacher.first(batch["numbers"])))
        embedding = teacher.norm(torch.tanh(x))
        return embedding, teacher(batch["numbers"])["logits"]


@pytest.mark.parametrize("labels", [None, "labels"])
@pytest.mark.parametrize("null_space", [True, False])
def test_the_survey_fits_the_directions_of_the_whole_training_set(tmp_path, labels, null_space):
    teacher = taught()
    made = trainer(tmp_path, [lelp(teacher, labels=labels, null_space=null_space, seed=4)], teacher, student())
    embedding, logits = shown(teacher, collate([Numbers()[i] for i in range(64)]))
    ids = logits.argmax(1) if labels is None else torch.tensor([Numbers()[i]["labels"] for i in range(64)])
    kept = ids != -100
    head = teacher.head.weight if null_space else None
    expected = fit_lelp(embedding[kept], ids[kept], 3, 2, head_weight=head, seed=4)
    part = made.model.parts["lelp"]
    for name, value in vars(expected).items():
        found = getattr(part, name)
        assert (found is None) == (value is None)
        if value is not None:
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)


def test_rows_that_do_not_count_are_left_out_of_survey_and_loss(tmp_path):
    teacher = taught()
    made = trainer(tmp_path, [lelp(teacher, mask="counts")], teacher, student())
    batch = collate([Numbers()[i] for i in range(64)])
    embedding, logits = shown(teacher, batch)
    kept = batch["counts"]
    expected = fit_lelp(embedding[kept], logits[kept].argmax(1), 3, 2, head_weight=teacher.head.weight)
    part = made.model.parts["lelp"]
    torch.testing.assert_close(part.scale, expected.scale, rtol=1e-4, atol=1e-5)
    objective, wide = made.model.objectives[0], torch.randn(64, 6)
    spoilt = [x.masked_fill(~kept[:, None], torch.nan) for x in (wide, logits, embedding)]
    total = objective.total(
        seen(batch, ({"wide_logits": spoilt[0]}, {}), ({"logits": spoilt[1]}, {TAP: spoilt[2]})), part
    )
    targets = lelp_targets(embedding[kept], logits[kept].softmax(-1), *part.fields())
    torch.testing.assert_close(total, lelp_loss(wide[kept], targets, reduction="sum"))
    assert objective.count(batch) == kept.sum()


def test_the_loss_is_that_of_the_targets(tmp_path):
    teacher = taught()
    made = trainer(tmp_path, [lelp(teacher, beta=2.0, temperature=1.5)], teacher, student())
    batch = batch_of()
    embedding, logits = shown(teacher, batch)
    part, wide = made.model.parts["lelp"], torch.randn(8, 6)
    targets = lelp_targets(embedding, (logits / 1.5).softmax(-1), *part.fields(), beta=2.0)
    total = made.model.objectives[0].total(
        seen(batch, ({"wide_logits": wide}, {}), ({"logits": logits}, {TAP: embedding})), part
    )
    torch.testing.assert_close(total, lelp_loss(wide, targets, reduction="sum"))


def test_a_step_does_not_depend_on_how_its_rows_are_split(tmp_path):
    weights = []
    for batch, accumulation in ((8, 1), (4, 2), (2, 4)):
        teacher, net = taught(), student()
        net.norm.eval().train = lambda mode=True, net=net: (
            net.norm
        )  # its statistics would tie the rows of a micro-batch
        made = trainer(
            tmp_path, [lelp(teacher)], teacher, net, steps=2, batch=batch, accumulation=accumulation, optim="sgd"
        )
        made.train()
        weights.append(made.model.student.head.weight.detach())
    torch.testing.assert_close(weights[1], weights[0])
    torch.testing.assert_close(weights[2], weights[0])


def test_the_basis_is_in_the_checkpoint_and_a_resumed_run_ends_alike(tmp_path):
    ends = []
    for resumed in (False, True):
        teacher = taught()
        made = trainer(tmp_path, [lelp(teacher)], teacher, student(), steps=4, save_strategy="steps", save_steps=2)
        if resumed:
            made.model.parts["lelp"].mean.add_(1)  # what is in the checkpoint counts
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resumed else None)
        ends.append({k: v.clone() for k, v in made.model.state_dict().items()})
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_training_lowers_the_loss(tmp_path):
    teacher = taught()
    made = trainer(tmp_path, [lelp(teacher)], teacher, student(), steps=30)
    made.train()
    values = [event["terms"]["lelp"]["value"] for event in made.history.events if event["event"] == "step"]
    assert values[-1] < values[0] - 0.3


def test_sizes_that_do_not_fit_are_refused():
    objective = lelp(taught())
    teacher, student = Signal({"logits": torch.zeros(2, 3)}, {TAP: torch.zeros(2, 8)}), torch.zeros(2, 7)
    with pytest.raises(RecipeError, match=r"lelp.on.*\(B, 3·S\).*wide_head"):
        objective.build_part(Signal({"wide_logits": student}), teacher)
    teacher.tapped[TAP] = torch.zeros(2, 4, 8)
    with pytest.raises(RecipeError, match=r"lelp.teacher_on.*\(B, D\)"):
        objective.build_part(Signal({"wide_logits": student[:, :6]}), teacher)


def test_more_subclasses_than_directions_are_refused_by_name(tmp_path):
    teacher = taught(width=4)  # of which the head sees three
    with pytest.raises(InputError, match=r"lelp.num_subclasses.*at most 1"):
        trainer(tmp_path, [lelp(teacher)], teacher, student())
    trainer(tmp_path, [lelp(teacher, null_space=False)], teacher, student())


def test_what_makes_no_objective_is_refused():
    teacher = taught()
    with pytest.raises(RecipeError, match=r"lelp.teacher_on: is no tap"):
        LELPObjective("lelp", "logits")
    with pytest.raises(RecipeError, match="weight of the teacher's output layer"):
        LELPObjective("lelp", "norm@output").meet(None, {"teacher": teacher})
    with pytest.raises(RecipeError, match="null_space: false"):
        LELPObjective("lelp", TAP).build_part(Signal(), Signal())
    LELPObjective("lelp", "norm@output", null_space=False).meet(None, {"teacher": teacher})
    for field in ("beta", "temperature"):
        with pytest.raises(RecipeError, match=rf"lelp.{field}"):
            lelp(teacher, **{field: 0})
