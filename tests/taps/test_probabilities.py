"""Maps rebuilt from queries and keys equal the weights of eager attention, on every kind of attention there is."""

import copy
import doctest

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from potstill.errors import InputError, ShapeError
from potstill.taps import attention_probs, probabilities

PADDED = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
IDS = torch.arange(14).reshape(2, 7) + 3
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50}


def bert():
    return BertModel(BertConfig(**SMALL, num_attention_heads=4)), {"input_ids": IDS, "attention_mask": PADDED}


def vit():
    config = ViTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                       image_size=12, patch_size=4)  # fmt: skip
    return ViTModel(config), {"pixel_values": torch.randn(2, 3, 12, 12)}


def llama(padding="right"):
    model = LlamaModel(LlamaConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2))
    return model, {"input_ids": IDS, "attention_mask": PADDED if padding == "right" else PADDED.flip(1)}


def llama_left():
    return llama("left")


def t5():
    config = T5Config(d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, vocab_size=50)
    inputs = {"input_ids": IDS, "attention_mask": PADDED, "decoder_input_ids": IDS[:, :5]}
    return T5Model(config), inputs | {"decoder_attention_mask": PADDED[:, 2:]}


def seen_attention(model, inputs, mask):
    """Run with fused attention; return what each attention was called with, and what mask each query had."""
    calls = []

    def record(module, query, key, value, attention_mask, **options):
        calls.append((query, key, attention_mask, options))
        if (bias := options.pop("position_bias", None)) is not None:
            seen = attention_mask
            if attention_mask.dtype == torch.bool:
                seen = torch.zeros_like(bias[:1]).masked_fill(~attention_mask, torch.finfo(bias.dtype).min)
            attention_mask = bias + seen
            calls[-1][3]["position_bias"] = bias
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=options["scaling"], is_causal=False
        )

    AttentionInterface.register("recorded", record)
    AttentionMaskInterface.register("recorded", mask)
    try:
        model = copy.deepcopy(model)
        model.set_attn_implementation("recorded")
        with torch.no_grad():
            model(**inputs)
    finally:
        for interface in (AttentionInterface, AttentionMaskInterface):
            interface._global_mapping.pop("recorded", None)
    return calls


def all_maps(output):
    """Return the maps in the order in which they were made: in a decoder self, cross, self, cross."""
    if "encoder_attentions" not in output:
        return output.attentions
    decoder = [x for layer in zip(output.decoder_attentions, output.cross_attentions) for x in layer]
    return [*output.encoder_attentions, *decoder]


@pytest.mark.parametrize("mask", [sdpa_mask, eager_mask], ids=["bool", "additive"])
@pytest.mark.parametrize("make", [bert, vit, llama, llama_left, t5])
def test_maps_equal_those_of_eager_attention(make, mask):
    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name.lower():
                weight.normal_(std=0.5)
    calls = seen_attention(model, inputs, mask)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        exact = all_maps(model(**inputs, output_attentions=True))
    assert len(calls) == len(exact) == (6 if make is t5 else 2)
    for (query, key, attention_mask, options), weights in zip(calls, exact):
        found = attention_probs(query, key, options["scaling"], options.get("position_bias"), attention_mask)
        assert found.shape == weights.shape
        torch.testing.assert_close(found, weights, atol=1e-5, rtol=0)
        assert weights.max() > 0.5  # far from even, so that a mistake would show


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_heads_that_share_keys_equal_repeated_keys():
    query, key = random(2, 6, 3, 4), random(2, 2, 5, 4, seed=1)
    repeated = key.repeat_interleave(3, 1)
    torch.testing.assert_close(attention_probs(query, key, 0.5), attention_probs(query, repeated, 0.5))


def test_rows_sum_to_one_and_forbidden_keys_get_nothing():
    query, key, mask = random(2, 3, 4, 8), random(2, 3, 5, 8, seed=1), random(2, 1, 4, 5) > -0.5
    mask[..., 0] = True
    found = attention_probs(query, key, 8**-0.5, attention_mask=mask)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3, 4, dtype=found.dtype))
    assert (found.masked_fill(mask, 0) == 0).all()


@pytest.mark.parametrize("kind", ["bool", "-inf"])
def test_a_query_without_keys_is_even_or_zero_and_gives_no_nan_in_the_gradient(kind):
    query, key = random(1, 2, 3, 4).requires_grad_(), random(1, 2, 5, 4, seed=1).requires_grad_()
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    mask[0, 0, 1] = mask[..., 4] = False
    given = mask if kind == "bool" else torch.zeros(1, 1, 3, 5).masked_fill(~mask, -torch.inf)
    found = attention_probs(query, key, 0.5, attention_mask=given)
    found.square().sum().backward()
    assert (found[:, :, 1] == (0.2 if kind == "bool" else 0)).all()
    assert (query.grad[:, :, 1] == 0).all()
    assert torch.isfinite(query.grad).all()
    assert torch.isfinite(key.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_whose_keys_all_have_the_lowest_number_is_even_as_in_eager_attention(dtype):
    query, key = (x.to(dtype) for x in (random(1, 2, 3, 4), random(1, 2, 5, 4, seed=1)))
    mask = torch.full((1, 1, 3, 5), torch.finfo(dtype).min, dtype=dtype)
    torch.testing.assert_close(attention_probs(query, key, 0.5, attention_mask=mask), torch.full((1, 2, 3, 5), 0.2))


def test_half_precision_and_autocast_give_float32_maps_of_the_rounded_queries():
    query, key = random(1, 2, 3, 8).bfloat16(), random(1, 2, 5, 8, seed=1).bfloat16()
    exact = attention_probs(query.double(), key.double(), 0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention_probs(query, key, 0.3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=1e-5)


def test_the_gradient_is_right_with_bias_and_mask():
    query, key, bias = random(1, 4, 2, 3), random(1, 2, 3, 3, seed=1), random(1, 4, 2, 3, seed=2)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    for x in (query, key, bias):
        x.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k, b: attention_probs(q, k, 0.7, b, mask), (query, key, bias))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"key": random(2, 4, 5, 4)}, ShapeError, r"H a multiple of Hkv = 4; got H = 6"),
        ({"key": random(2, 6, 5, 3)}, ShapeError, r"query \(B, H, Q, d\) and key"),
        ({"key": random(1, 6, 5, 4)}, ShapeError, "queries and keys do not fit"),
        ({"query": random(6, 3, 4)}, ShapeError, r"got query \[6, 3, 4\]"),
        ({"attention_mask": torch.ones(2, 5, dtype=torch.bool)}, ShapeError, r"attention_mask.*\[2, 6, 3, 5\]"),
        ({"attention_mask": torch.ones(2, 1, 1, 5, dtype=torch.long)}, InputError, r"neither bool.*mask\.bool\(\)"),
        ({"position_bias": random(2, 6, 5, 3)}, ShapeError, "position_bias does not fit"),
        ({"query": torch.ones(2, 6, 3, 4, dtype=torch.long)}, InputError, "query is not floating point"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, words):
    options = {"query": random(2, 6, 3, 4), "key": random(2, 2, 5, 4), "scaling": 0.5} | change
    with pytest.raises(error, match=words) as caught:
        attention_probs(**options)
    assert isinstance(caught.value, ValueError)


def test_doc_example_runs():
    result = doctest.testmod(probabilities)
    assert result.attempted > 0
    assert result.failed == 0
