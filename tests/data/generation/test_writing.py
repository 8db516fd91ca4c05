"""Writing token by token: as without cached keys, as ``generate`` does, and the mask right after the first end."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from potstill.data.generation import pad_left, write_tokens
from potstill.errors import InputError, ShapeError
from tiny_writers import END, PAD, V, gpt2, llama


@pytest.fixture
def prompts():
    return pad_left([torch.tensor([3, 4, 5, 6]), torch.tensor([7, 8])], PAD)


def test_rows_are_padded_on_the_left():
    ids, mask = pad_left([torch.tensor([3, 4]), torch.tensor([5])], PAD)
    assert ids.tolist() == [[3, 4], [0, 5]]
    assert mask.tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_greedy_text_is_that_of_generate(make, prompts):
    model = make().eval()
    ids, mask = prompts
    written = write_tokens(model, ids, mask, max_new_tokens=6, eos_token_id=None, pad_token_id=PAD, temperature=0)
    expected = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=PAD, eos_token_id=None
    )
    assert torch.equal(written.tokens, expected[:, ids.shape[1] :])
    assert written.mask.all()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_log_probs_are_those_of_a_pass_over_the_whole_row(prompts, temperature):
    model, teacher = llama(), llama(1)
    ids, mask = prompts
    written = write_tokens(
        model, ids, mask, max_new_tokens=8, eos_token_id=END, pad_token_id=PAD, temperature=temperature,
        generator=torch.Generator().manual_seed(0), teacher=teacher, alpha=0.3,
    )  # fmt: skip
    for row, prompt in enumerate(([3, 4, 5, 6], [7, 8])):
        answer = written.tokens[row][written.mask[row]]
        whole = torch.cat([torch.tensor(prompt), answer])[None]
        with torch.no_grad():
            q, p = ((m.eval()(whole).logits[0] / temperature).softmax(-1) for m in (model, teacher))
        mixed = (0.3 * p + 0.7 * q).log()[len(prompt) - 1 : -1]
        expected = mixed.gather(-1, answer[:, None])[:, 0]
        torch.testing.assert_close(written.log_probs[row][written.mask[row]], expected, atol=1e-5, rtol=1e-4)
        assert written.log_probs[row][~written.mask[row]].eq(0).all()


def test_a_row_counts_up_to_its_first_end_which_counts_too(prompts):
    ids, mask = (x.repeat(20, 1) for x in prompts)
    written = write_tokens(
        llama(), ids, mask, max_new_tokens=10, eos_token_id=[END, 2], pad_token_id=PAD,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    ended = 0
    for tokens, kept in zip(written.tokens.tolist(), written.mask.tolist()):
        ends = [i for i, t in enumerate(tokens) if t in (END, 2)]
        n = ends[0] + 1 if ends else len(tokens)
        assert kept == [True] * n + [False] * (len(tokens) - n)
        assert all(t == PAD for t in tokens[n:])
        ended += bool(ends)
    assert ended > 0


def test_samples_follow_the_distribution():
    model = llama().eval()
    ids = torch.tensor([[3, 4]]).repeat(20000, 1)
    written = write_tokens(
        model, ids, torch.ones_like(ids), max_new_tokens=1, eos_token_id=None, pad_token_id=PAD,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    with torch.no_grad():
        p = model(ids[:1]).logits[0, -1].softmax(-1)
    found = torch.bincount(written.tokens[:, 0], minlength=V) / 20000
    assert (found - p).abs().lt(4 * (p * (1 - p) / 20000).sqrt() + 1e-4).all()


def test_the_seed_decides_and_the_global_generator_is_left_alone(prompts):
    settings = {"max_new_tokens": 8, "eos_token_id": END, "pad_token_id": PAD}
    before = torch.get_rng_state()
    one, two = (
        write_tokens(llama(), *prompts, generator=torch.Generator().manual_seed(5), **settings) for _ in range(2)
    )
    assert torch.equal(one.tokens, two.tokens)
    torch.manual_seed(0)
    llama()
    torch.set_rng_state(before)
    model = llama()
    state = torch.get_rng_state()
    write_tokens(model, *prompts, generator=torch.Generator().manual_seed(5), **settings)
    assert torch.equal(torch.get_rng_state(), state)


def test_top_k_and_top_p_leave_the_most_likely(prompts):
    model, settings = llama().eval(), {"max_new_tokens": 5, "eos_token_id": None, "pad_token_id": PAD}
    greedy = write_tokens(model, *prompts, temperature=0, **settings).tokens
    assert torch.equal(write_tokens(model, *prompts, top_k=1, **settings).tokens, greedy)
    assert torch.equal(write_tokens(model, *prompts, top_p=1e-6, **settings).tokens, greedy)
    with torch.no_grad():
        likely = model(torch.tensor([[3, 4, 5, 6]])).logits[0, -1].topk(3).indices
    ids, mask = (x[:1].repeat(300, 1) for x in prompts)
    drawn = write_tokens(model, ids, mask, top_k=3, **{**settings, "max_new_tokens": 1}).tokens
    assert set(drawn.flatten().tolist()) == set(likely.tolist())


def test_only_ids_of_both_models_are_drawn(prompts):
    ids, mask = (x.repeat(50, 1) for x in prompts)
    written = write_tokens(
        llama(vocab=V + 4), ids, mask, max_new_tokens=4, eos_token_id=None, pad_token_id=PAD,
        teacher=llama(1), alpha=0.2, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert written.tokens.max() < V


def test_models_stay_in_their_mode_and_without_a_graph(prompts):
    model = llama().train()
    model.model.norm.eval()
    written = write_tokens(model, *prompts, max_new_tokens=2, eos_token_id=None, pad_token_id=PAD)
    assert model.training
    assert not model.model.norm.training
    assert not written.log_probs.requires_grad


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": 0.5}, "teacher"),
        ({"max_new_tokens": 61}, "positions"),
    ],
)
def test_settings_out_of_range_are_refused(prompts, change, field):
    settings = {"max_new_tokens": 2, "eos_token_id": END, "pad_token_id": PAD} | change
    with pytest.raises(InputError, match=field):
        write_tokens(llama(), *prompts, **settings)


def test_prompts_padded_on_the_right_and_models_that_cannot_write_are_refused(prompts):
    ids, mask = prompts
    settings = {"max_new_tokens": 2, "eos_token_id": END, "pad_token_id": PAD}
    with pytest.raises(InputError, match="padded on the right"):
        write_tokens(llama(), ids.flip(1), mask.flip(1), **settings)
    with pytest.raises(ShapeError):
        write_tokens(llama(), ids, mask[:, 1:], **settings)
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=V, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )
    with pytest.raises(InputError, match="cannot write"):
        write_tokens(t5, ids, mask, **settings)
