"""MiniLLM's gradient is that of the reverse KL of whole answers, found by going through all of them."""

import itertools

import pytest
import torch

from potstill.data.generation import as_if_written
from potstill.errors import RecipeError
from potstill.objectives import MiniLLMObjective, Seen
from potstill.taps import Signal
from tiny_writers import llama

V, T = 3, 3
PROMPT = [1, 2]


def every_answer():
    """All answers of T tokens behind one prompt, as one batch."""
    answers = torch.tensor(list(itertools.product(range(V), repeat=T)))
    ids = torch.cat([torch.tensor([PROMPT]).expand(len(answers), -1), answers], 1)
    labels = ids.clone()
    labels[:, : len(PROMPT)] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def log_prob(model, batch, answers):
    logits = model(input_ids=batch["input_ids"]).logits.double()[:, len(PROMPT) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, answers[..., None])[..., 0]


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_the_expected_gradient_is_that_of_the_kl_of_answers():
    """Σ over answers of its probability × the objective's gradient = the gradient of KL(q || p)."""
    student, teacher = (llama(seed, vocab=V).double() for seed in (0, 1))
    batch = every_answer()
    answers = batch["labels"][:, len(PROMPT) :]
    log_q, log_p = log_prob(student, batch, answers), log_prob(teacher, batch, answers).detach()
    exact = gradient((log_q.sum(1).exp() * (log_q.sum(1) - log_p.sum(1))).sum(), student)
    objective = MiniLLMObjective("minillm", "logits", returns="future_sum", whiten=False)
    expected = torch.zeros_like(exact)
    for i in range(len(answers)):
        row = as_if_written({k: v[i : i + 1] for k, v in batch.items()})
        row["rollout_log_probs"] = torch.cat([torch.zeros(1, len(PROMPT)), log_q[i : i + 1].detach()], 1)
        expected += log_q[i].sum().exp().detach() * gradient(total(objective, row, student, teacher), student)
    torch.testing.assert_close(expected, exact, rtol=1e-4, atol=1e-6)


def written(rows=6):
    torch.manual_seed(0)
    student, teacher = llama(0), llama(1)
    ids = torch.randint(3, 12, (rows, 7))
    labels = ids.clone()
    labels[:, :3] = -100
    labels[0, 5:] = -100
    batch = as_if_written({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    with torch.no_grad():
        log_q = student(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    batch["rollout_log_probs"][:, 1:] = log_q.masked_fill(labels[:, 1:] == -100, 0)
    return batch, student, teacher


def total(objective, batch, student, teacher):
    signals = [Signal({"logits": m(input_ids=batch["input_ids"]).logits}) for m in (student, teacher)]
    return objective.total(Seen(batch, *signals), None)


def test_without_whitening_the_sum_does_not_depend_on_the_split():
    batch, student, teacher = written()
    objective = MiniLLMObjective("minillm", "logits", whiten=False)
    halves = [{k: v[half] for k, v in batch.items()} for half in (slice(0, 3), slice(3, 6))]
    parts = sum(total(objective, half, student, teacher) for half in halves)
    torch.testing.assert_close(total(objective, batch, student, teacher), parts)
    assert objective.count(batch) == 4 * 6 - 2
    assert not objective.batch_coupled


def test_tokens_that_were_not_written_change_nothing():
    batch, student, teacher = written()
    objective = MiniLLMObjective("minillm", "logits", whiten=True)
    signals = [Signal({"logits": m(input_ids=batch["input_ids"]).logits}) for m in (student, teacher)]
    before = objective.total(Seen(batch, *signals), None)
    spoilt = signals[0].outputs["logits"].clone()
    spoilt[0, 4:] = float("nan")
    after = objective.total(Seen(batch, Signal({"logits": spoilt}), signals[1]), None)
    torch.testing.assert_close(before, after)


def test_nothing_written_is_zero_with_a_graph_and_no_gradient_reaches_the_teacher():
    batch, student, teacher = written()
    batch["rollout_labels"] = torch.full_like(batch["labels"], -100)
    loss = total(MiniLLMObjective("minillm", "logits"), batch, student, teacher)
    assert loss == 0
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.model.embed_tokens.weight.grad is not None


def test_the_policy_gradient_is_weighed_by_q_over_what_was_drawn_from():
    batch, student, teacher = written()
    objective = MiniLLMObjective("m", "logits", whiten=False)
    fresh = total(objective, batch, student, teacher)
    rare = {**batch, "rollout_log_probs": batch["rollout_log_probs"] - torch.tensor(2.0).log()}
    rarer = {**batch, "rollout_log_probs": batch["rollout_log_probs"] - torch.tensor(3.0).log()}
    steps = total(objective, rare, student, teacher) - fresh, total(objective, rarer, student, teacher) - fresh
    assert not torch.isclose(steps[0], torch.zeros(()))
    torch.testing.assert_close(2 * steps[0], steps[1], rtol=1e-4, atol=1e-5)


def test_old_text_counts_at_most_so_much():
    batch, student, teacher = written()
    batch["rollout_log_probs"] -= 20
    small, large = (
        total(MiniLLMObjective("m", "logits", max_weight=w, whiten=False), batch, student, teacher) for w in (1.0, 2.0)
    )
    fresh = {**batch, "rollout_log_probs": batch["rollout_log_probs"] + 20}
    torch.testing.assert_close(
        small, total(MiniLLMObjective("m", "logits", whiten=False), fresh, student, teacher), rtol=1e-4, atol=1e-4
    )
    assert not torch.isclose(small, large)


@pytest.mark.parametrize("options", [{"returns": "all"}, {"gamma": 1.5}, {"reward_clip": 0.0}, {"max_weight": -1.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(RecipeError, match=next(iter(options))):
        MiniLLMObjective("minillm", "logits", **options)


def test_a_run_without_rollouts_is_told_what_is_missing():
    batch, student, teacher = written()
    del batch["rollout_log_probs"]
    with pytest.raises(RecipeError, match="rollout"):
        total(MiniLLMObjective("minillm", "logits"), batch, student, teacher)
