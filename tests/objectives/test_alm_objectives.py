import pytest
import torch

from potstill.errors import RecipeError
from potstill.losses import alm_latents_loss, alm_loss, boundary_mask
from potstill.objectives import OBJECTIVES, ALMLatentsObjective, ALMObjective, LabelObjective
from potstill.teachers import LiveTeacher
from potstill.train import DistillModule
from two_vocabularies import BPE, BYTES, Rows, Samples, collator, student, teacher

BATCH = collator()(Samples()[:4])


def built(*objectives):
    module = DistillModule(student(), objectives)
    live = LiveTeacher(teacher(), outputs=module.teacher_outputs, taps=module.teacher_taps)
    return module, live.signal(BATCH)


def sides():
    """Return what the function takes, made by hand."""
    own = student()(BATCH["input_ids"], attention_mask=BATCH["attention_mask"]).logits
    other = teacher()(BATCH["teacher_input_ids"], attention_mask=BATCH["teacher_attention_mask"]).logits
    keys = ("input_ids", "teacher_input_ids", "student_chunks", "teacher_chunks")
    return own, other, *(BATCH[k] for k in keys), BATCH["labels"] != -100, BATCH["teacher_labels"] != -100


@pytest.mark.parametrize("merge", [None, 0.1])
def test_value_is_that_of_the_loss_on_both_models(merge):
    objective = ALMObjective(merge_threshold=merge)
    objective.read_tokenizers(BYTES, BPE)
    module, signal = built(objective)
    boundaries = boundary_mask(BYTES), boundary_mask(BPE)
    expected = alm_loss(*sides(), *boundaries, append_boundary=True, merge_threshold=merge)
    torch.testing.assert_close(module(BATCH, signal).loss, expected, check_dtype=False)


def test_plain_chunks_need_no_tokenizer():
    module, signal = built(ALMObjective(append_boundary=False, merge_threshold=None))
    torch.testing.assert_close(module(BATCH, signal).loss, alm_loss(*sides()))


def test_count_is_known_from_the_batch_and_right():
    objective = ALMObjective(append_boundary=False, merge_threshold=None)
    expected = sum(len(set(row.tolist()) - {-1}) for row in BATCH["student_chunks"])
    assert objective.count(BATCH) == expected
    masked = {**BATCH, "teacher_labels": BATCH["teacher_labels"].clone()}
    masked["teacher_labels"][0] = -100
    assert objective.count(masked) == expected - len(set(BATCH["student_chunks"][0].tolist()) - {-1})


def test_splitting_a_batch_does_not_change_the_loss():
    objective = ALMObjective(append_boundary=False, merge_threshold=None)
    module, signal = built(objective)
    whole = module(BATCH, signal).totals["alm"]
    halves = []
    for rows in (slice(0, 1), slice(1, 4)):
        part = {k: v[rows] for k, v in BATCH.items()}
        live = LiveTeacher(teacher(), outputs=module.teacher_outputs)
        halves.append(module(part, live.signal(part)).totals["alm"])
    torch.testing.assert_close(whole, sum(halves))


def test_hidden_states_are_compared_at_the_ends_of_chunks():
    module, signal = built(ALMLatentsObjective("latents", "model.norm@output"))
    own = student().model(BATCH["input_ids"], attention_mask=BATCH["attention_mask"]).last_hidden_state
    other = teacher().model(BATCH["teacher_input_ids"], attention_mask=BATCH["teacher_attention_mask"])
    expected = alm_latents_loss(
        own, other.last_hidden_state, BATCH["student_chunks"], BATCH["teacher_chunks"],
        BATCH["labels"] != -100, BATCH["teacher_labels"] != -100,
    )  # fmt: skip
    torch.testing.assert_close(module(BATCH, signal).loss, expected, check_dtype=False)


def test_a_student_learns_from_a_teacher_with_another_tokenizer():
    objective = ALMObjective()
    objective.read_tokenizers(BYTES, BPE)
    module, signal = built(objective, LabelObjective("labels", "logits", "labels", shift=True))
    before = module(BATCH, signal)
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        module(BATCH, signal).loss.backward()
        optimizer.step()
    after = module(BATCH, signal)
    for name in ("alm", "labels"):
        assert after.totals[name] < before.totals[name]


def test_a_batch_of_one_tokenizer_is_refused():
    with pytest.raises(RecipeError, match='no "student_chunks"'):
        ALMObjective("chunks").count(Rows(BYTES)(Samples()[:2]))


def test_boundaries_without_tokenizers_are_refused():
    module, signal = built(ALMObjective())
    with pytest.raises(RecipeError, match=r"alm\.append_boundary: the tokenizers are not known"):
        module(BATCH, signal)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"merge_threshold": 2}, {"diff": "kl"}, {"eps": -1}, {"temperature": "hot"}]
)
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(RecipeError, match=rf"alm\.{next(iter(options))}"):
        ALMObjective(**options)


def test_recipes_find_both():
    assert OBJECTIVES.get("alm") is ALMObjective
    assert OBJECTIVES.get("alm_latents") is ALMLatentsObjective
