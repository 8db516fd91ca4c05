from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache

from potstill.errors import InputError


def naive_greedy(model, pixels, mask, ids, length):
    rows = []
    for row, row_mask, start in zip(pixels, mask, ids):
        text = start[None]
        while text.shape[1] < length and int(text[0, -1]) != model.config.eos_token_id:
            logits = model(row[None], row_mask[None], input_ids=text).caption_logits[:, -1]
            text = torch.cat([text, logits.argmax(-1, keepdim=True)], dim=1)
        rows.append(F.pad(text[0], (0, length - text.shape[1]), value=model.config.pad_token_id))
    return torch.stack(rows)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_generation_equals_a_naive_loop_and_stops_at_eos(tiny_model, inputs, use_cache, attention):
    model = tiny_model(vocab_size=8, seed=3)
    pixels, mask = inputs["pixel_values"], inputs["image_mask"]
    want = naive_greedy(model, pixels, mask, torch.ones(4, 1, dtype=torch.long), 10)
    model.set_attn_implementation(attention)
    got = model.generate(pixels, mask, max_length=10, use_cache=use_cache)
    assert torch.equal(F.pad(got, (0, 10 - got.shape[1])), want)
    assert len({tuple(row) for row in want.tolist()}) > 1  # the pictures matter


def test_generation_encodes_the_picture_once(tiny_model, inputs, captured):
    model = tiny_model()
    passes = captured(model, "image_encoder")
    model.generate(inputs["pixel_values"], inputs["image_mask"], max_new_tokens=5, num_beams=2)
    assert len(passes) == 1


def test_generation_goes_on_with_texts_padded_on_the_left(tiny_model, inputs):
    model = tiny_model()
    pixels, mask = inputs["pixel_values"][:2], inputs["image_mask"][:2]
    ids = torch.tensor([[1, 7, 9], [0, 1, 8]])
    valid = torch.tensor([[1, 1, 1], [0, 1, 1]])
    both = model.generate(pixels, mask, ids, attention_mask=valid, max_new_tokens=4, eos_token_id=None)
    alone = model.generate(pixels[1:], mask[1:], ids[1:, 1:], max_new_tokens=4, eos_token_id=None)
    assert torch.equal(both[1:, 1:], alone)


def test_a_cache_changes_nothing_but_the_work(tiny_model, inputs, captured):
    model = tiny_model()
    pixels, mask = inputs["pixel_values"], inputs["image_mask"]
    options = {"max_new_tokens": 8, "num_beams": 3, "eos_token_id": None}
    keys = captured(model, "multimodal_decoder.blocks.0.cross_attn.k_proj")
    tokens = captured(model, "text_decoder.token_embedding")
    with_cache = model.generate(pixels, mask, **options)
    assert len(keys) == 1
    assert [states.shape[1] for states in tokens] == [1] * 8
    assert torch.equal(with_cache, model.generate(pixels, mask, use_cache=False, **options))


def test_decoding_in_pieces_equals_decoding_at_once(tiny_model, inputs):
    model = tiny_model()
    inputs["attention_mask"] = None
    whole = model(**inputs)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    pieces = [
        model(memory=whole.memory, memory_mask=whole.memory_mask, input_ids=ids, past_key_values=cache).caption_logits
        for ids in inputs["input_ids"].split([3, 2, 1, 1], dim=1)
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole.caption_logits)


def test_beam_search_finds_a_caption_at_least_as_likely_as_greedy(tiny_model, inputs):
    model = tiny_model(seed=5)
    pixels, mask = inputs["pixel_values"], inputs["image_mask"]

    def log_likelihood(ids):
        logits = model(pixels, mask, input_ids=ids).caption_logits[:, :-1].log_softmax(-1)
        return logits.gather(2, ids[:, 1:, None]).sum((1, 2))

    options = {"max_new_tokens": 3, "eos_token_id": None}
    greedy = log_likelihood(model.generate(pixels, mask, **options))
    beam = log_likelihood(model.generate(pixels, mask, num_beams=29, **options))
    assert (beam >= greedy - 1e-5).all()


def test_sampling_follows_the_seed(tiny_model, inputs):
    model = tiny_model()
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(model.generate(inputs["pixel_values"], inputs["image_mask"], do_sample=True, max_new_tokens=6))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_generation_needs_a_picture(tiny_model):
    with pytest.raises(InputError, match="pixel_values"):
        tiny_model().generate(max_new_tokens=2)
