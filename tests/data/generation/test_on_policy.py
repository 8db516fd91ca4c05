"""On-policy batches: who wrote what, which tokens count, what is kept, and going on exactly."""

import pytest
import torch

from potstill.data.generation import OnPolicySampler
from potstill.errors import InputError
from tiny_writers import END, PAD, V, llama


def data(rows=4, seed=0):
    """Prompts of 2 or 3 tokens, completions of 2 or 1, one pad where both are short."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, V, (rows, 5), generator=g)
    mask, labels = torch.ones_like(ids), ids.clone()
    for i in range(rows):
        labels[i, : 2 + i % 2] = -100
        if i % 2:
            ids[i, 4], mask[i, 4], labels[i, 4] = PAD, 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "domain": torch.arange(rows)}


def sampler(lmbda=1.0, n=6, **options):
    return OnPolicySampler(lmbda, n, eos_token_id=END, pad_token_id=PAD, **options)


def test_without_rollouts_the_batch_is_that_of_the_data():
    batch = data()
    found = sampler(0.0).batch(batch, llama())
    for key in batch:
        assert torch.equal(found[key], batch[key])
    assert torch.equal(found["data_labels"], batch["labels"])
    assert found["rollout_labels"].eq(-100).all()
    assert found["rollout_log_probs"].eq(0).all()


def test_written_rows_keep_their_prompt_and_count_up_to_the_end():
    batch = data(40)
    found = sampler(1.0).batch(batch, llama())
    assert found["data_labels"].eq(-100).all()
    assert torch.equal(found["labels"], found["rollout_labels"])
    ends = 0
    for i in range(40):
        n = 2 + i % 2
        ids, labels, mask = (found[k][i] for k in ("input_ids", "labels", "attention_mask"))
        assert torch.equal(ids[:n], batch["input_ids"][i][:n])
        counted = labels != -100
        assert not counted[:n].any()
        length = int(mask.sum())
        assert torch.equal(counted, (torch.arange(len(ids)) >= n) & (torch.arange(len(ids)) < length))
        answer = ids[n:length].tolist()
        assert END not in answer[:-1]
        assert len(answer) == 6 or answer[-1] == END
        ends += answer[-1] == END
        assert found["rollout_log_probs"][i][counted].lt(0).all()
    assert 0 < ends < 40


def test_one_draw_decides_for_a_batch_or_for_a_row():
    model, per_batch, per_row = llama(), sampler(0.5, 1), sampler(0.5, 1, per="row")
    shares = []
    for _ in range(60):
        written = (per_batch.batch(data(), model)["rollout_labels"] != -100).any(1)
        assert written.all() or not written.any()
        shares.append(written.float().mean())
    assert 0.3 < torch.stack(shares).mean() < 0.7
    rows = torch.cat([(per_row.batch(data(), model)["rollout_labels"] != -100).any(1).float() for _ in range(60)])
    assert 0.4 < rows.mean() < 0.6
    one = next(b for b in (per_row.batch(data(), model) for _ in range(20)) if b["data_labels"].ne(-100).any())
    labelled = (one["rollout_labels"] != -100).any(1)
    assert torch.equal(one["labels"][labelled], one["rollout_labels"][labelled])
    assert torch.equal(one["labels"][~labelled], one["data_labels"][~labelled])


def test_rows_of_the_buffer_come_with_their_own_entries():
    model, keeps = llama(), sampler(1.0, 3, buffer=6, reuse=1.0)
    keeps.batch(data(4), model)
    again = keeps.batch({**data(4, seed=9), "domain": torch.full((4,), 77)}, model)
    assert sorted(again["domain"].tolist()) == [0, 1, 2, 3]
    assert len(keeps.rows) == 4
    more = sampler(1.0, 3, buffer=6, reuse=0.0)
    for _ in range(3):
        more.batch(data(4), model)
    assert len(more.rows) == 6


def test_going_on_from_a_state_is_exact():
    model = llama()
    one = sampler(0.7, 4, per="row", buffer=8, reuse=0.5, seed=3)
    for i in range(5):
        one.batch(data(4, seed=i), model)
    two = sampler(0.7, 4, per="row", buffer=8, reuse=0.5, seed=99)
    two.load_state_dict(one.state_dict())
    for i in range(5, 12):
        a, b = (s.batch(data(4, seed=i), model) for s in (one, two))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_mixture_with_the_teacher_is_drawn_from():
    student, teacher = llama(), llama(5)
    one = sampler(1.0, 4, alpha=1.0, seed=1).batch(data(), student, teacher)
    two = sampler(1.0, 4, seed=1).batch(data(), teacher)
    assert torch.equal(one["input_ids"], two["input_ids"])


def test_a_text_without_prompt_begins_with_its_first_token():
    batch = data(1)
    batch["labels"] = batch["input_ids"].clone()
    found = sampler().batch(batch, llama())
    assert found["input_ids"][0, 0] == batch["input_ids"][0, 0]
    assert found["labels"][0, 0] == -100


def test_keys_that_go_with_the_tokens_are_refused():
    with pytest.raises(InputError, match="span_ids"):
        sampler().batch({**data(), "span_ids": torch.zeros(4, 5)}, llama())
    with pytest.raises(InputError, match="labels"):
        sampler().batch({"input_ids": torch.ones(2, 2), "attention_mask": torch.ones(2, 2)}, llama())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"lmbda": 1.5}, "lmbda"),
        ({"reuse": -0.1}, "reuse"),
        ({"reuse": 0.5}, "buffer"),
        ({"n": 0}, "max_new_tokens"),
        ({"temperature": 0.0}, "temperature"),
        ({"per": "token"}, "per"),
        ({"alpha": 2.0}, "alpha"),
    ],
)
def test_settings_out_of_range_are_refused(change, field):
    with pytest.raises(InputError, match=field):
        sampler(**change)
