import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from potstill.errors import InputError, RecipeError, ShapeError
from potstill.evaluate import calibration_error, cka_table, fidelity
from potstill.evaluate.fidelity import pool


def test_a_model_is_perfectly_faithful_to_itself(scenes):
    model = scenes.model()
    scores = fidelity(model, model, scenes.data, scenes.collator, batch_size=20)
    assert set(scores) == {"caption", "vqa", "entailment", "nlvr2"}
    for entry in scores.values():
        assert entry["agreement"] == 1
        assert entry["kl"] == pytest.approx(0, abs=1e-7)
        assert entry["ece"] == entry["teacher_ece"]
    assert len(scores["caption"]["kl_by_position"]) > 4


def test_agreement_kl_and_calibration_by_hand(toy, make_table):
    student = toy.model({"vqa": make_table([0, 1, 2, 0, 0, 0])})
    teacher = toy.model({"vqa": make_table([0, 1, 2, 0, 1, 2], height=4.0)})
    scores = fidelity(student, teacher, toy.data, toy.collate, batch_size=4)["vqa"]
    assert scores["agreement"] == pytest.approx(4 / 6)
    assert scores["samples"] == 6
    p, q = (math.exp(h) / (math.exp(h) + 2) for h in (4.0, 2.0))
    rest_p, rest_q = (1 - p) / 2, (1 - q) / 2
    same = p * math.log(p / q) + 2 * rest_p * math.log(rest_p / rest_q)
    other = p * math.log(p / rest_q) + rest_p * math.log(rest_p / q) + rest_p * math.log(rest_p / rest_q)
    assert scores["kl"] == pytest.approx((4 * same + 2 * other) / 6, rel=1e-5)
    assert scores["ece"] == pytest.approx(abs(4 / 6 - q), rel=1e-5)
    assert scores["teacher_ece"] == pytest.approx(1 - p, rel=1e-5)


def test_kl_by_position_follows_the_predicted_tokens_not_the_columns():
    class Model(nn.Module):
        def __init__(self, wrong_first):
            super().__init__()
            self.weight, self.wrong_first = nn.Parameter(torch.zeros(1)), wrong_first

        def forward(self, sample_id):
            logits = torch.zeros(len(sample_id), 4, 3)
            logits[:, :, 0] = 1.0
            if self.wrong_first:  # the first predicted token stands in column 2 of row 0 and column 1 of row 1
                logits[0, 2], logits[1, 1] = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
            return {"caption_logits": logits}

    labels = torch.tensor([[-100, -100, 1, 1], [-100, 1, 1, 1]])
    batch = {"sample_id": torch.arange(2), "caption_labels": labels}
    scores = fidelity(Model(True), Model(False), [0, 1], lambda samples: batch)["caption"]
    first, second, third = scores["kl_by_position"]
    assert first == pytest.approx((math.e - 1) / (math.e + 2), rel=1e-5)
    assert second == third == 0
    assert scores["samples"] == 5
    assert scores["kl"] == pytest.approx(first * 2 / 5)
    assert scores["agreement"] == pytest.approx(3 / 5)


def test_causal_models_are_compared_where_they_predict_a_label():
    class Model(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.weight, self.last, self.can_generate = nn.Parameter(torch.zeros(1)), last, lambda: True

        def forward(self, input_ids):
            logits = torch.zeros(*input_ids.shape, 3)
            logits[:, -1, 0] = self.last  # predicts what follows the text, which no label tells
            return SimpleNamespace(logits=logits)

    batch = {"input_ids": torch.ones(2, 4).long(), "labels": torch.ones(2, 4).long()}
    scores = fidelity(Model(5.0), Model(-5.0), [0, 1], lambda samples: batch)["main"]
    assert scores["kl"] == 0
    assert scores["samples"] == 6


def test_classes_in_another_order_are_refused(toy, make_table):
    logits = {"vqa": make_table([0] * 8)}
    turned = toy.model(logits, {"vqa": ["green", "red", "blue"]})
    with pytest.raises(ShapeError, match=r'"red"'):
        fidelity(toy.model(logits), turned, toy.data, toy.collate)


def test_another_number_of_classes_is_refused(toy, make_table):
    teacher = toy.model({"vqa": make_table([0] * 8, size=4)})
    with pytest.raises(ShapeError, match="other classes"):
        fidelity(toy.model({"vqa": make_table([0] * 8)}), teacher, toy.data, toy.collate)


def test_tasks_only_one_model_answers_are_left_out_unless_named(toy, make_table):
    both = {"vqa": make_table([0] * 8), "entailment": make_table([0] * 8)}
    student, teacher = toy.model(both), toy.model({"vqa": both["vqa"]})
    assert list(fidelity(student, teacher, toy.data, toy.collate)) == ["vqa"]
    with pytest.raises(InputError, match=r"^teacher"):
        fidelity(student, teacher, toy.data, toy.collate, tasks=["entailment"])
    with pytest.raises(RecipeError):
        fidelity(student, teacher, toy.data, toy.collate, tasks=["nlvr2"])


def test_neither_model_learns_or_changes_mode(scenes):
    student, teacher = scenes.model(1).train(), scenes.model(2)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    fidelity(student, teacher, scenes.data, scenes.collator, max_samples=8)
    assert student.training
    assert not teacher.training
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert all(p.grad is None for p in (*student.parameters(), *teacher.parameters()))


def test_calibration_error_by_hand():
    # Bin of 0.9: 1 of 2 right, gap 0.4; bin of 0.35: 1 of 1 right, gap 0.65.
    error = calibration_error(torch.tensor([0.9, 0.9, 0.35]), torch.tensor([True, False, True]))
    assert error == pytest.approx((2 * 0.4 + 0.65) / 3)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1 / 15, 14 / 15])
def test_confidence_at_the_edge_of_a_bin_is_counted_once(confidence):
    assert calibration_error(torch.tensor([confidence]), torch.tensor([True])) == pytest.approx(1 - confidence)


def test_errors_in_opposite_directions_do_not_cancel_across_bins():
    confidence, right = torch.tensor([0.9] * 4 + [0.1] * 4), torch.tensor([False] * 4 + [True] * 4)
    assert calibration_error(confidence, right) == pytest.approx(0.9)


def _batches(scenes, n=2, size=12):
    return [scenes.collator([scenes.data[size * i + j] for j in range(size)]) for i in range(n)]


def test_cka_of_a_model_with_itself_is_one_and_with_another_is_not(scenes):
    pairs = [
        ("image_encoder", "image_encoder.blocks.0", "image_encoder.blocks.0"),
        ("text_decoder", "text_decoder.blocks.0", "text_decoder.blocks.0"),
    ]
    model = scenes.model()
    same = cka_table(model, model, pairs, _batches(scenes))
    assert [row["module"] for row in same] == ["image_encoder", "text_decoder"]
    assert all(row["cka"] == pytest.approx(1, abs=1e-4) for row in same)
    other = cka_table(model, scenes.model(5, text_width=24, image_width=32), pairs, _batches(scenes))
    assert all(row["cka"] < 0.99 for row in other)
    assert not model.image_encoder.blocks[0]._forward_hooks


def test_cka_of_one_layer_with_two_layers_runs_each_model_once_a_batch(scenes):
    model, calls = scenes.model(), []
    model.register_forward_hook(lambda *args: calls.append(1))
    pairs = [("m", "image_encoder.blocks.0", f"image_encoder.blocks.{i}") for i in (0, 1)]
    rows = cka_table(model, scenes.model(3), pairs, _batches(scenes))
    assert len(rows) == 2
    assert len(calls) == 2


def test_cka_names_the_pair_with_too_few_samples(scenes):
    with pytest.raises(ShapeError, match=r"image_encoder\.blocks\.0"):
        cka_table(
            scenes.model(),
            scenes.model(),
            [("image_encoder", "image_encoder.blocks.0", "image_encoder.blocks.0")],
            _batches(scenes, 1, 2),
        )


def test_cka_taps_are_removed_after_an_unknown_path(scenes):
    model = scenes.model()
    with pytest.raises(RecipeError, match="no such module"):
        cka_table(model, model, [("m", "image_encoder.blocks.0", "image_encoder.blocks.9")], _batches(scenes))
    assert not model.image_encoder.blocks[0]._forward_hooks


def test_pooling_ignores_padding():
    hidden = torch.tensor([[[1.0], [3.0], [99.0]], [[2.0], [4.0], [6.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(hidden, mask).tolist() == [[2.0], [4.0]]
    assert pool(hidden, mask[:, :2]).shape == (2, 1)
    assert pool(torch.ones(2, 5, 3, 3)).shape == (2, 5)
    assert pool(torch.ones(2, 5)).shape == (2, 5)
