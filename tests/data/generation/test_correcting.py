"""SCRG: the teacher's token where the student is furthest off, and the student's own text behind it."""

import copy

import pytest
import torch

from potstill.data.generation import CorrectingSampler, Written, scrg_regenerate, write_tokens
from potstill.errors import InputError, ShapeError
from potstill.losses import scrg_select
from tiny_writers import END, PAD, V, gpt2, llama

OPTIONS = {"max_new_tokens": 8, "eos_token_id": END, "pad_token_id": PAD}


def prompts(rows=6, seed=0):
    """Two or four tokens, padded on the left."""
    ids = torch.randint(3, V, (rows, 4), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    ids[::2, :2], mask[::2, :2] = PAD, 0
    return ids, mask


def draws(seed=5):
    return torch.Generator().manual_seed(seed)


def said(model, row, answer):
    """What a model says of every token of one answer, read without padding."""
    with torch.no_grad():
        logits = model.eval()(torch.cat([row, answer])[None]).logits
    return logits[:, len(row) - 1 : -1]


@pytest.mark.parametrize("make", [llama, lambda seed=0: gpt2()])
@pytest.mark.parametrize("corrections", [1, 2])
def test_every_correction_is_the_token_that_the_rule_names_and_the_rest_before_it_stays(make, corrections):
    student, teacher = make(), llama(1)
    ids, mask = prompts()
    previous = write_tokens(student, ids, mask, generator=draws(), **OPTIONS)
    for n in range(1, corrections + 1):
        found = scrg_regenerate(student, teacher, ids, mask, n_corrections=n, generator=draws(), **OPTIONS)
        if n < corrections:
            previous = found
    changed = 0
    for i in range(len(ids)):
        row, before, after = (
            ids[i][mask[i].bool()],
            previous.tokens[i][previous.mask[i]],
            found.tokens[i][found.mask[i]],
        )
        everywhere = torch.ones(1, len(before), dtype=torch.bool)
        place, token = scrg_select(said(student, row, before), said(teacher, row, before), before[None], everywhere)
        if place < 0:
            assert torch.equal(before, after)
            continue
        changed += 1
        assert torch.equal(before[:place], after[:place])
        assert after[place] == token != before[place]
        assert found.log_probs[i, place] == 0
        assert len(after) <= 8
        assert END not in after[:-1]
        assert len(after) == 8 or after[-1] == END
    assert changed > 2


def test_without_corrections_it_is_what_the_student_wrote():
    ids, mask = prompts()
    plain = write_tokens(llama(), ids, mask, generator=draws(), **OPTIONS)
    found = scrg_regenerate(llama(), llama(1), ids, mask, n_corrections=0, generator=draws(), **OPTIONS)
    for key in ("tokens", "mask", "log_probs"):
        assert torch.equal(getattr(plain, key), getattr(found, key))


def test_a_response_the_teacher_would_have_written_is_left_alone():
    model, (ids, mask) = llama(), prompts()
    greedy = write_tokens(model, ids, mask, temperature=0, **OPTIONS)
    found = scrg_regenerate(llama(2), model, ids, mask, written=greedy, **OPTIONS)
    assert torch.equal(found.tokens, greedy.tokens)


def test_an_end_put_in_by_the_teacher_ends_the_response():
    class Ending(torch.nn.Module):
        """Would end every text at once."""

        def forward(self, input_ids, attention_mask=None, use_cache=False):
            logits = torch.zeros(*input_ids.shape, V)
            logits[..., END] = 9.0
            return type("Output", (), {"logits": logits})

    ids, mask = prompts()
    written = write_tokens(llama(), ids, mask, generator=draws(), **OPTIONS)
    found = scrg_regenerate(llama(), Ending(), ids, mask, written=written, **OPTIONS)
    for i in range(len(ids)):
        assert found.tokens[i][found.mask[i]][-1] == END
        assert found.mask[i].sum() <= written.mask[i].sum()


def test_the_same_draws_write_the_same_and_global_ones_are_not_touched():
    ids, mask = prompts()
    state = torch.get_rng_state()
    found = [scrg_regenerate(llama(), llama(1), ids, mask, generator=draws(), **OPTIONS).tokens for _ in range(2)]
    assert torch.equal(*found)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    student, teacher = llama(), llama(1)
    state = torch.get_rng_state()
    scrg_regenerate(student, teacher, ids, mask, generator=draws(), **OPTIONS)
    assert torch.equal(state, torch.get_rng_state())


def test_models_are_left_in_the_mode_they_were_in_and_have_no_gradient():
    student, teacher = llama().train(), llama(1).train()
    student.model.layers[0].eval()
    scrg_regenerate(student, teacher, *prompts(), generator=draws(), **OPTIONS)
    assert student.training
    assert teacher.training
    assert not student.model.layers[0].training
    assert all(p.grad is None for p in [*student.parameters(), *teacher.parameters()])


def test_prompt_and_response_may_fill_all_positions():
    ids, mask = prompts()
    student, teacher = llama(positions=12), llama(1, positions=12)  # 4 + 8
    for seed in range(5):
        scrg_regenerate(student, teacher, ids, mask, n_corrections=3, generator=draws(seed), **OPTIONS)


@pytest.mark.parametrize("number", [-1, 1.0, True])
def test_a_number_of_corrections_that_is_none_is_refused(number):
    with pytest.raises(InputError, match="n_corrections"):
        scrg_regenerate(llama(), llama(1), *prompts(), n_corrections=number, **OPTIONS)


def test_models_of_different_vocabularies_are_refused():
    with pytest.raises(ShapeError, match="vocabularies differ"):
        scrg_regenerate(llama(), llama(1, vocab=V + 1), *prompts(), generator=draws(), **OPTIONS)


def test_a_row_may_have_room_of_its_own():
    ids, mask = prompts()
    rooms = torch.tensor([1, 2, 3, 4, 5, 8])
    found = write_tokens(llama(), ids, mask, generator=draws(), **{**OPTIONS, "max_new_tokens": rooms})
    lengths = found.mask.sum(1)
    assert (lengths <= rooms).all()
    last = found.tokens.gather(1, lengths[:, None] - 1)[:, 0]
    assert ((lengths == rooms) | (last == END)).all()
    assert (lengths == rooms).sum() > 2


def batch():
    ids = torch.randint(3, V, (4, 5), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :3] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def test_the_sampler_gives_corrected_batches_and_goes_on_exactly():
    options = {"eos_token_id": END, "pad_token_id": PAD, "seed": 3}
    straight, stopped = (CorrectingSampler(1, 1.0, 6, **options) for _ in range(2))
    assert straight.needs_teacher
    student, teacher = llama(), llama(1)
    found = [straight.batch(batch(), student, teacher) for _ in range(4)]
    for _ in range(2):
        stopped.batch(batch(), student, teacher)
    again = CorrectingSampler(1, 1.0, 6, **options)
    again.load_state_dict(copy.deepcopy(stopped.state_dict()))
    for expected in found[2:]:
        got = again.batch(batch(), student, teacher)
        assert all(torch.equal(got[key], value) for key, value in expected.items())
    corrected = (found[0]["rollout_labels"] != -100) & (found[0]["rollout_log_probs"] == 0)
    assert corrected.sum(1).tolist() == [1, 1, 1, 1]


def test_a_sampler_that_mixes_the_teacher_in_is_refused():
    with pytest.raises(InputError, match="alpha"):
        CorrectingSampler(1, 1.0, 6, pad_token_id=PAD, alpha=0.2)


def test_written_responses_of_unequal_length_can_be_given():
    ids, mask = prompts(2)
    given = Written(
        torch.tensor([[5, END, PAD], [4, 6, 7]]),
        torch.tensor([[True, True, False], [True, True, True]]),
        torch.full((2, 3), -1.0),
    )
    found = scrg_regenerate(llama(), llama(1), ids, mask, written=given, generator=draws(), **OPTIONS)
    assert (found.mask.sum(1) >= 1).all()
