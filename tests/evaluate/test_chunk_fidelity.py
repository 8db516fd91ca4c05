import math

import pytest
import torch
from torch import nn

from potstill.evaluate import cka_table, evaluate_tasks, fidelity
from potstill.losses import chunk_logprobs
from two_vocabularies import Samples, collator, student, teacher


def test_models_of_two_tokenizers_are_compared_by_chunks():
    rows, both = Samples(), collator()
    scores = fidelity(student(), teacher(), rows, both, batch_size=4)
    assert set(scores) == {"main"}
    batch = both(list(rows))
    found = []
    with torch.no_grad():
        for model, own, side in ((student().eval(), "", "student"), (teacher().eval(), "teacher_", "teacher")):
            ids = batch[f"{own}input_ids"]
            logits = model(ids, attention_mask=batch[f"{own}attention_mask"]).logits
            found.append(chunk_logprobs(logits, ids, batch[f"{side}_chunks"], batch[f"{own}labels"] != -100)[:2])
    (s, valid), (t, _) = found
    assert scores["main"]["chunks"] == int(valid.sum())
    assert scores["main"]["chunk_gap"] == pytest.approx((s - t)[valid].abs().mean().item(), rel=1e-5)
    p, q = t[valid].exp().double(), s[valid].exp().double()
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert scores["main"]["chunk_kl"] == pytest.approx(kl.mean().item(), rel=1e-4)
    num_bytes = sum(len(row["text"].encode()) for row in rows)
    for name, of_model in (("bits_per_byte", s), ("teacher_bits_per_byte", t)):
        assert scores["main"][name] == pytest.approx(-of_model.sum().item() / num_bytes / math.log(2), rel=1e-5)


def test_a_model_is_perfectly_faithful_to_itself():
    from two_vocabularies import BPE

    scores = fidelity(teacher(), teacher(), Samples(), collator(BPE, BPE))
    assert scores["main"]["chunk_gap"] == scores["main"]["chunk_kl"] == 0


def test_the_teachers_labels_are_no_task_of_the_student():
    assert set(evaluate_tasks(student(), Samples(), collator())) == {"main"}
    assert set(evaluate_tasks(teacher(), Samples(), collator().teacher)) == {"main"}


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)
        self.layer.weight.data.copy_(torch.eye(3))

    def forward(self, numbers):
        return {"logits": self.layer(numbers)}


def test_the_teacher_is_given_its_own_inputs():
    numbers = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    other = numbers.flip(1) * 3
    batch = {"numbers": numbers, "teacher_numbers": other, "labels": torch.arange(6) % 3}
    scores = fidelity(Linear(), Linear(), list(range(6)), lambda samples: batch)["main"]
    log_s, log_t = numbers.log_softmax(-1), other.log_softmax(-1)
    assert scores["kl"] == pytest.approx((log_t.exp() * (log_t - log_s)).sum(-1).mean().item(), rel=1e-5)
    (row,) = cka_table(Linear(), Linear(), [("layer", "layer", "layer")], [batch])
    assert row["cka"] == pytest.approx(cka_of(numbers, other), rel=1e-4)


def cka_of(x, y):
    from potstill.losses import cka

    return float(cka(x, y, debiased=True))
