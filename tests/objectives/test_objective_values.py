"""Objectives against a few lines of arithmetic: values, masks, rows, shifts, and what does not fit."""

import pytest
import torch
import torch.nn.functional as F

from potstill.errors import InputError, PotstillError, RecipeError
from potstill.losses import kd_kl
from potstill.objectives import (
    HiddenObjective,
    LabelObjective,
    ModelLossObjective,
    OutputObjective,
    ReadoutObjective,
    Where,
)
from potstill.objectives.base import Seen
from potstill.taps import Signal

B, T, V, D = 2, 4, 5, 3
torch.manual_seed(0)
LOGITS_S, LOGITS_T = torch.randn(2, B, T, V)
STATES_S, STATES_T = torch.randn(2, B, T, D)
LABELS = torch.tensor([[1, 2, -100, -100], [0, 4, 3, -100]])
BATCH = {"labels": LABELS, "mask": (LABELS != -100).long()}


def seen(student=None, teacher=None, hidden_s=None, hidden_t=None, batch=BATCH):
    return Seen(batch, Signal(student or {}, hidden_s or {}), Signal(teacher or {}, hidden_t or {}))


def kl(s, t):
    return (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1)


@pytest.mark.parametrize("where", [Where(labels="labels"), Where(mask="mask")])
def test_an_output_is_compared_where_it_counts(where):
    objective = OutputObjective("a", kd_kl, "s", teacher_on="t", where=where, options={"temperature": 1.0})
    total = objective.total(seen({"s": LOGITS_S}, {"t": LOGITS_T}), None)
    torch.testing.assert_close(total, kl(LOGITS_S, LOGITS_T)[LABELS != -100].sum())
    assert objective.count(BATCH) == 5


def test_shifted_outputs_are_compared_one_position_later():
    objective = OutputObjective("a", kd_kl, "s", where=Where(labels="labels"), shift=True, options={"temperature": 1.0})
    total = objective.total(seen({"s": LOGITS_S}, {"s": LOGITS_T}), None)
    torch.testing.assert_close(total, kl(LOGITS_S, LOGITS_T)[:, :-1][LABELS[:, 1:] != -100].sum())
    assert objective.count(BATCH) == 3


def test_vocabularies_that_differ_are_refused():
    objective = OutputObjective("a", kd_kl, "s", where=Where(labels="labels"))
    with pytest.raises(InputError, match=r"5.*4|4.*5"):
        objective.total(seen({"s": LOGITS_S}, {"s": LOGITS_T[..., :4]}), None)


@pytest.mark.parametrize("shift", [False, True])
def test_labels_give_the_sum_of_the_cross_entropy(shift):
    objective = LabelObjective("a", "s", "labels", shift=shift)
    logits, labels = (LOGITS_S[:, :-1], LABELS[:, 1:]) if shift else (LOGITS_S, LABELS)
    expected = F.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="sum")
    torch.testing.assert_close(objective.total(seen({"s": LOGITS_S}), None), expected)
    assert objective.count(BATCH) == (labels != -100).sum()


def test_labels_that_are_missing_or_do_not_fit_are_refused():
    with pytest.raises(RecipeError, match='the batch has no "labls"'):
        LabelObjective("a", "s", "labls").count(BATCH)
    with pytest.raises(RecipeError, match="do not fit"):
        LabelObjective("a", "s", "labels").total(seen({"s": LOGITS_S[:, :2]}), None)


def test_the_models_own_loss_is_weighed_by_rows():
    objective = ModelLossObjective("a")
    assert objective.total(seen({"loss": torch.tensor(1.5)}), None) == 3.0
    assert objective.count(BATCH) == B


def test_hidden_states_are_compared_over_tokens_that_count_and_channels():
    objective = HiddenObjective("h", [("a", "b"), ("a", "c")], module="m", where=Where(mask="mask"))
    shown = seen(hidden_s={"a": STATES_S}, hidden_t={"b": STATES_T, "c": 2 * STATES_T})
    errors = [(STATES_S - t).square().mean(-1)[LABELS != -100].sum() for t in (STATES_T, 2 * STATES_T)]
    torch.testing.assert_close(objective.total(shown, None).float(), sum(errors) / 2)
    nothing = {**BATCH, "mask": torch.zeros(B, T)}
    assert objective.total(seen(hidden_s={"a": STATES_S}, hidden_t={"b": STATES_T}, batch=nothing), None) == 0


def test_rows_count_where_a_mask_has_another_shape():
    where = Where(rows="image_mask")
    assert where.count({"image_mask": torch.tensor([[1, 0], [1, 1]]), "x": torch.ones(2)}) == 3
    assert where.mask_of({"image_mask": torch.ones(2, 2)}) is None
    assert Where().count({"x": torch.ones(7, 2)}) == 7


def build(student, teacher, projector="auto"):
    objective = HiddenObjective("h", [("a", "b")], module="m", projector=projector)
    return objective.build_part(Signal({}, {"a": student}), Signal({}, {"b": teacher}))


def test_a_projector_is_built_only_where_it_is_needed_or_asked_for():
    assert build(STATES_S, STATES_T) is None
    assert build(STATES_S, STATES_T, "linear")["0"].weight.shape == (D, D)
    assert build(STATES_S[..., :2], STATES_T)["0"].weight.shape == (D, 2)


def test_widths_and_positions_that_differ_are_refused():
    with pytest.raises(RecipeError, match="student 2, teacher 3") as error:
        build(STATES_S[..., :2], STATES_T, "none")
    assert error.value.where == "h.projector"
    with pytest.raises(RecipeError, match="see different positions"):
        build(STATES_S[:, :2], STATES_T)
    with pytest.raises(RecipeError, match="no layers to compare"):
        HiddenObjective("h", [], module="m")


def test_a_readout_takes_the_largest_label_of_a_cell_a_quarter_full():
    maps = torch.full((1, 2, 4, 4), -100)
    maps[0, 0, :2, :2] = torch.tensor([[1, -100], [-100, -100]])  # a quarter of the first cell
    maps[0, 0, 2:, 2:] = torch.tensor([[0, 2], [0, 0]])
    batch = {"maps": maps, "image_mask": torch.tensor([[1, 0]])}
    objective = ReadoutObjective("r", "a", "maps", 3, rows="image_mask")
    states = torch.randn(1, 4, D)
    part = objective.build_part(Signal({}, {"a": states}), None)
    logits = part(states)[0]
    expected = F.cross_entropy(logits[[0, 3]], torch.tensor([1, 2]), reduction="sum")
    torch.testing.assert_close(objective.total(seen(hidden_s={"a": states}, batch=batch), part), expected)
    assert objective.count(batch) == 2


def test_a_readout_passes_over_the_tokens_before_the_grid():
    states = torch.randn(2, 5, D)
    batch = {"maps": torch.randint(0, 3, (2, 4, 4))}
    shown = seen(hidden_s={"a": states}, batch=batch)
    skipping = ReadoutObjective("r", "a", "maps", 3, skip=1)
    part = skipping.build_part(Signal({}, {"a": states}), None)
    plain = ReadoutObjective("r", "a", "maps", 3)
    plain.build_part(Signal({}, {"a": states[:, 1:]}), None)
    expected = plain.total(seen(hidden_s={"a": states[:, 1:]}, batch=batch), part)
    torch.testing.assert_close(skipping.total(shown, part), expected)
    assert skipping.count(batch) == 8


@pytest.mark.parametrize("skip", [-1, 1.0, True, 5])
def test_a_readout_that_passes_over_all_or_part_of_a_token_is_refused(skip):
    with pytest.raises(RecipeError) as error:
        ReadoutObjective("r", "a", "maps", 3, skip=skip).build_part(Signal({}, {"a": torch.randn(2, 5, D)}), None)
    assert error.value.where == "r.skip"


def test_a_readout_refuses_what_is_no_grid():
    readout = ReadoutObjective("r", "a", "maps", 3)
    readout.build_part(Signal({}, {"a": torch.randn(1, 5, D)}), None)
    with pytest.raises(RecipeError, match="no square grid"):
        readout.count({"maps": torch.zeros(1, 10, 10, dtype=torch.long)})


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "2"])
def test_a_weight_must_be_finite_and_not_negative(weight):
    with pytest.raises(PotstillError, match="weight"):
        ModelLossObjective("a", weight=weight)
