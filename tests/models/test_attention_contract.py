"""What CoCa and taps assume of transformers' attention registry; a release that breaks it breaks us silently."""

import copy
import inspect
import re
from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface, DynamicCache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import potstill
from potstill.models.coca_layers import CocaAttention, eager_attention

# Everything of the registry that our code uses; the tests below hold one contract for each.
USED = {
    ("models/coca_layers.py", "ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_"),
    ("taps/attention.py", "ALL_ATTENTION_FUNCTIONS.get_interface(name, None)("),
    ("taps/attention.py", "AttentionInterface.register(IMPLEMENTATION, _attend)"),
}
REGISTRY = re.compile(
    r"(?:ALL_\w*ATTENTION_FUNCTIONS|Attention(?:Mask)?Interface|masking_utils|set_attn_\w+)\b[.(].{0,60}"
)


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(2, 3, 5, 8, generator=generator) for _ in range(3)]


@pytest.fixture
def module(tiny):
    return next(m for m in tiny("coca")[0].modules() if isinstance(m, CocaAttention))


def test_every_use_of_the_registry_is_listed_here():
    folder = Path(potstill.__file__).parent
    found = {
        (path.relative_to(folder).as_posix(), text)
        for path in folder.rglob("*.py")
        for text in REGISTRY.findall(path.read_text(encoding="utf-8"))
    }
    assert len(found) == len(USED)
    for path, text in found:
        assert any(path == place and text.startswith(start) for place, start in USED), (path, text)


def test_the_look_up_takes_a_name_and_a_default():
    assert list(inspect.signature(AttentionInterface.get_interface).parameters) == [
        *("self", "attn_implementation", "default")
    ]


def test_eager_means_the_function_of_the_model():
    assert ALL_ATTENTION_FUNCTIONS.get_interface("eager", eager_attention) is eager_attention


def test_an_unknown_name_is_refused_and_never_the_default():
    with pytest.raises(KeyError, match="potstill_no_such_attention"):
        ALL_ATTENTION_FUNCTIONS.get_interface("potstill_no_such_attention", eager_attention)


def test_a_function_registered_later_is_found(monkeypatch):
    monkeypatch.setattr(AttentionInterface, "_global_mapping", dict(AttentionInterface._global_mapping))
    AttentionInterface.register("potstill_contract", eager_attention)
    assert ALL_ATTENTION_FUNCTIONS.get_interface("potstill_contract", torch.add) is eager_attention


@pytest.mark.parametrize("name", ["eager", "sdpa", "flash_attention_2", "flash_attention_3"])
def test_a_registered_function_takes_what_we_pass(name):
    parameters = inspect.signature(ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)).parameters
    assert list(parameters)[:5] == ["module", "query", "key", "value", "attention_mask"]
    assert {"dropout", "scaling"} <= set(parameters)


@pytest.mark.parametrize("mask", [None, "bool", "additive"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_sdpa_reads_masks_and_causality_as_our_own_function(module, tensors, monkeypatch, mask, is_causal):
    """A bool mask is True where a key may be read; ``module.is_causal`` says what no mask means."""
    monkeypatch.setattr(module, "is_causal", is_causal)
    if mask is not None:
        allowed = torch.ones(5, 5, dtype=torch.bool).tril(1)[None, None]
        mask = allowed if mask == "bool" else torch.zeros(1, 1, 5, 5).masked_fill(~allowed, float("-inf"))
    sdpa = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", eager_attention)
    theirs = sdpa(module, *tensors, mask, dropout=0.0, scaling=0.3)
    ours = eager_attention(module, *tensors, mask, dropout=0.0, scaling=0.3)
    assert theirs[0].shape == (2, 5, 3, 8)  # [B, T, H, d]
    torch.testing.assert_close(theirs[0], ours[0])
    assert len(theirs) == len(ours) == 2


def test_one_query_reads_all_keys_of_a_cache(module, tensors, monkeypatch):
    monkeypatch.setattr(module, "is_causal", True)
    query, key, value = tensors
    sdpa = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", eager_attention)
    theirs, _ = sdpa(module, query[:, :, -1:], key, value, None, dropout=0.0, scaling=None)
    ours, _ = eager_attention(module, query[:, :, -1:], key, value, None)
    torch.testing.assert_close(theirs, ours)


def test_setting_the_implementation_changes_what_every_module_looks_up(coca_teacher):
    from potstill.models.coca import CocaModel

    model = CocaModel.from_pretrained(coca_teacher)
    modules = [m for m in model.modules() if isinstance(m, CocaAttention)]
    assert {m.config._attn_implementation for m in modules} == {"sdpa"}  # what _supports_sdpa is for
    model.set_attn_implementation("eager")
    assert {m.config._attn_implementation for m in modules} == {"eager"}
    with pytest.raises(ValueError, match="potstill_no_such_attention"):
        model.set_attn_implementation("potstill_no_such_attention")


def test_a_cache_appends_to_self_attention_and_keeps_cross_attention_by_layer():
    cache, states = EncoderDecoderCache(DynamicCache(), DynamicCache()), torch.ones(2, 3, 4, 8)
    assert not cache.is_updated.get(0)
    for length in (4, 8):
        keys, values = cache.self_attention_cache.update(states, states, 0)
        assert keys.shape == values.shape == (2, 3, length, 8)
    assert cache.get_seq_length() == 8
    cache.cross_attention_cache.update(states, 2 * states, 0)
    layer = cache.cross_attention_cache.layers[0]
    assert torch.equal(layer.keys, states)
    assert torch.equal(layer.values, 2 * states)


def test_a_configuration_keeps_its_attention_in_the_field_that_taps_set(tiny):
    """Set by the setter it would reach the configurations inside, too."""
    config = copy.copy(tiny("clip")[0].text_model.config)
    before = config._attn_implementation
    config._attn_implementation_internal = "potstill_contract"
    assert config._attn_implementation == "potstill_contract"
    assert tiny("clip")[0].text_model.config._attn_implementation == before


def test_an_attention_module_looks_its_configuration_up_at_every_call(tiny, monkeypatch):
    monkeypatch.setattr(AttentionInterface, "_global_mapping", dict(AttentionInterface._global_mapping))
    calls = []
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    AttentionInterface.register("potstill_contract", lambda *args, **kw: (calls.append(1), sdpa(*args, **kw))[1])
    for family in ("bert", "vit", "llama", "t5", "clip", "coca"):
        model, inputs = tiny(family)
        module = next(m for m in model.modules() if hasattr(m, "is_causal") and hasattr(m, "config"))
        config = copy.copy(module.config)
        config._attn_implementation_internal = "potstill_contract"
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(module, "config", config)
            calls.clear()
            model(**inputs)
        assert len(calls) == 1, family
