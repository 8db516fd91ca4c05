"""Attention maps are read from models of every family while they stay on SDPA, and equal those of eager attention."""

import copy

import pytest
import torch
from torch import nn

from potstill.errors import InputError, RecipeError
from potstill.models import coca_layers
from potstill.taps import AttentionTap, Taps
from potstill.taps.attention import find_attention, is_attention

LEFT = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
FAMILIES = (
    "bert",
    "vit",
    "llama",
    "llama-left",
    "qwen3",
    "t5",
    "clip",
    "coca",
    "blip-caption",
    "blip-vqa",
    "vit-gpt2",
    "vilt",
)


@pytest.fixture
def make(tiny):
    """``make(family)``: a copy of the tiny model on SDPA where it can be, and its inputs."""

    def build(family):
        model, inputs = tiny(family.removesuffix("-left"))
        model = copy.deepcopy(model)
        if family.endswith("-left"):
            inputs = {**inputs, "attention_mask": LEFT}
        if not family.startswith(("blip", "vilt")):  # outside the registry: always eager
            model.set_attn_implementation("sdpa")
        return model, inputs

    return build


def eager_maps(model, inputs, monkeypatch):
    """What the attention modules themselves return or compute when the whole model is eager."""
    maps, handles = {}, []
    model = copy.deepcopy(model)
    if not type(model).__name__.startswith(("Blip", "Vilt")):
        model.set_attn_implementation("eager")
    inner = coca_layers.eager_attention

    def eager_coca(module, *args, **kwargs):
        output, weights = inner(module, *args, **kwargs)
        maps[next(n for n, m in model.named_modules() if m is module)] = weights
        return output, weights

    monkeypatch.setattr(coca_layers, "eager_attention", eager_coca)
    for name, module in model.named_modules():
        if is_attention(module) and not isinstance(module, coca_layers.CocaAttention):

            def keep(module, args, output, name=name):
                maps[name] = [v for v in output if isinstance(v, torch.Tensor) and v.ndim == 4][-1]

            handles.append(module.register_forward_hook(keep))
    asked = {"output_attentions": True} if type(model).__name__.startswith("Vilt") else {}
    torch.manual_seed(0)
    with torch.no_grad():
        model(**inputs, **asked)
    return maps


@pytest.mark.parametrize("family", FAMILIES)
def test_every_map_equals_that_of_eager_attention_and_the_output_stays_as_it_was(family, make, monkeypatch):
    model, inputs = make(family)
    paths = [name for name, module in model.named_modules() if is_attention(module)]
    assert len(paths) >= 4
    with torch.no_grad():
        torch.manual_seed(0)  # ViLT draws the order of its patches
        before = model(**inputs)
        with AttentionTap(model, paths) as tap:
            torch.manual_seed(0)
            during = model(**inputs)
            maps = tap.maps()
    expected = eager_maps(model, inputs, monkeypatch)
    assert maps.keys() == expected.keys()
    for path, found in maps.items():
        assert found.dtype == torch.float32
        assert (found.sum(-1) - 1).abs().max() < 1e-5
        torch.testing.assert_close(found, expected[path].float(), rtol=0, atol=1e-5, msg=lambda m, p=path: f"{p}: {m}")
    for key, value in before.items():
        if isinstance(value, torch.Tensor):
            assert value.equal(during[key]), key


class Torch(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x, memory=None, **options):
        memory = x if memory is None else memory
        return self.attention(x, memory, memory, need_weights=False, **options)[0]


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key_padding_mask": torch.tensor([[False, False, False, True], [False] * 4])},
        {"attn_mask": torch.ones(4, 4, dtype=torch.bool).triu(1), "is_causal": True},
        {"attn_mask": torch.randn(4, 4)},
        {"attn_mask": torch.randn(4, 4, 4), "key_padding_mask": torch.tensor([[False] * 4, [False] * 3 + [True]])},
    ],
    ids=["plain", "padding", "causal", "additive", "both"],
)
@pytest.mark.parametrize("kdim", [None, 6])
def test_the_maps_of_torch_attention_equal_the_weights_it_returns_and_nobody_asks_for_them(options, kdim):
    torch.manual_seed(0)
    model, x = Torch(kdim=kdim, vdim=kdim).eval(), torch.randn(2, 4, 8)
    memory = None if kdim is None else torch.randn(2, 4, kdim)
    keys = x if memory is None else memory
    _, expected = model.attention(x, keys, keys, need_weights=True, average_attn_weights=False, **options)
    with AttentionTap(model, ["attention"]) as tap:
        model(x, memory, **options)
        torch.testing.assert_close(tap.maps()["attention"], expected, rtol=0, atol=1e-6)


def test_a_transformer_encoder_of_torch_shows_its_maps_in_eval_mode_too():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), 2).eval()
    x = torch.randn(2, 3, 8)
    with AttentionTap(encoder, ["layers.1"]) as tap, torch.no_grad():
        output = encoder(x)
        found = tap.maps()["layers.1"]
    assert found.shape == (2, 2, 3, 3)
    hidden = encoder.layers[0](x)
    _, expected = encoder.layers[1].self_attn(hidden, hidden, hidden, average_attn_weights=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(output, encoder(x))


def test_a_map_is_that_before_dropout_and_the_output_is_dropped_as_without_a_tap(make):
    model, inputs = make("bert")
    path = find_attention(model, "encoder.layer.1")
    with AttentionTap(model, [path]) as tap:
        model(**inputs)
        calm = tap.maps()[path]
        for name, module in model.named_modules():
            if name.startswith("encoder.layer.1.") and isinstance(module, nn.Dropout):
                module.p = 0.5
        model.encoder.layer[1].train()
        torch.manual_seed(1)
        during = model(**inputs).last_hidden_state
        assert tap.maps()[path].equal(calm)
    torch.manual_seed(1)
    assert model(**inputs).last_hidden_state.equal(during)


def test_blocks_stand_for_the_attention_they_hold_and_self_and_cross_are_told_apart(make):
    model, inputs = make("t5")
    paths = ["decoder.block.0@self_attention", "decoder.block.0@cross_attention", "encoder.block.3"]
    with AttentionTap(model, paths) as tap:
        model(**{**inputs, "decoder_input_ids": inputs["decoder_input_ids"][:, :3]})
        shapes = {path: tuple(value.shape) for path, value in tap.maps().items()}
    assert shapes == {paths[0]: (2, 2, 3, 3), paths[1]: (2, 2, 3, 5), paths[2]: (2, 2, 5, 5)}
    with pytest.raises(RecipeError, match=r"several modules of attention.*EncDecAttention"):
        AttentionTap(model, ["decoder.block.0"])
    with pytest.raises(RecipeError, match="no cross-attention"):
        AttentionTap(model, ["encoder.block.0@cross_attention"])


def test_rows_and_the_mean_of_heads_are_parts_of_the_whole_map(make):
    model, inputs = make("llama-left")
    paths = ["model.layers.2@attention", "model.layers.2@attention[3]", "model.layers.2@attention.head_mean"]
    taps = Taps(model, paths)
    taps.open()
    model(**inputs)
    whole, rows, mean = taps.close().values()
    torch.testing.assert_close(rows, whole[:, :, [0, 2, 4]])
    torch.testing.assert_close(mean, whole.mean(1, keepdim=True))
    taps.remove()
    for wrong in ("@attention[0]", "@attention[-1]", "@attention.tail_mean"):
        with pytest.raises(RecipeError, match="cannot read the tap"):
            Taps(model, ["model.layers.2" + wrong])


def test_a_reducer_gets_the_map_and_what_it_returns_is_kept(make):
    model, inputs = make("vit")
    with AttentionTap(model, ["vit.layers.0", "vit.layers.3"], reduce=lambda probs: probs.square().sum()) as tap:
        model(**inputs)
        sums = tap.maps()
        sums["vit.layers.3"].backward()
    assert all(value.ndim == 0 for value in sums.values())
    assert model.vit.layers[3].attention.q_proj.weight.grad.abs().sum() > 0


def test_nothing_of_the_model_is_changed_for_good(make, tmp_path):
    model, _ = make("clip")
    before = {name: m.config for name, m in model.named_modules() if hasattr(m, "config")}
    with AttentionTap(model, ["text_model.encoder.layers.1", "vision_model.encoder.layers.2"]):
        assert model.config._attn_implementation == "sdpa"
        assert model.text_model.config._attn_implementation == "sdpa"
        model.save_pretrained(tmp_path)
        assert "potstill" not in (tmp_path / "config.json").read_text()
    assert {name: m.config for name, m in model.named_modules() if hasattr(m, "config")} == before
    assert all(m.config is before[name] for name, m in model.named_modules() if hasattr(m, "config"))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_copy_of_a_tapped_model_can_be_freed_of_its_taps(make):
    model, inputs = make("bert")
    taps = Taps(model, ["encoder.layer.0@attention"])
    copied = copy.deepcopy(model)
    taps.remove_from(copied)
    taps.open()
    copied(**inputs)
    with pytest.raises(InputError, match=r"encoder\.layer\.0@attention.*no attention map"):
        taps.close()
    taps.open()
    model(**inputs)
    assert taps.close()
    taps.remove()
    copied(**inputs)


def test_gradients_flow_through_a_map_also_under_gradient_checkpointing(make):
    grads = []
    for checkpointed in (False, True):
        model, inputs = make("bert")
        model.train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        taps = Taps(model, ["encoder.layer.1@attention", "encoder.layer.3@attention"])
        taps.open()
        torch.manual_seed(0)  # dropout is on
        output = model(**inputs)
        maps = taps.close()
        (output.last_hidden_state.sum() + sum(m.square().sum() for m in maps.values())).backward()
        taps.remove()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-5, atol=1e-7)


def test_reentrant_checkpointing_which_would_lose_the_gradient_is_refused(make):
    model, inputs = make("bert")
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    taps = Taps(model, ["encoder.layer.1@attention"])
    taps.open()
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())
    with pytest.raises(InputError, match="use_reentrant"):
        model(**inputs)


def test_bf16_models_give_maps_in_fp32(make):
    model, inputs = make("llama")
    with AttentionTap(model, ["model.layers.0"]) as tap, torch.no_grad():
        model(**inputs)
        full = tap.maps()["model.layers.0"]
        model.bfloat16()
        model(**inputs)
        half = tap.maps()["model.layers.0"]
        model.float()
        with torch.autocast("cpu", torch.bfloat16):
            model(**inputs)
        mixed = tap.maps()["model.layers.0"]
    assert half.dtype == mixed.dtype == torch.float32
    assert (half.sum(-1) - 1).abs().max() < 1e-6
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.01)
    torch.testing.assert_close(mixed, full, rtol=0.05, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama", "t5", "coca"])
def test_a_compiled_model_is_one_graph_with_its_taps(family, make):
    model, inputs = make(family)
    paths = [name for name, module in model.named_modules() if is_attention(module)][:2]
    taps = Taps(model, [f"{path}@attention" for path in paths])
    taps.open()
    expected = model(**inputs)
    plain = taps.close()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        taps.open()
        compiled(**inputs)
        for path, value in taps.close().items():
            torch.testing.assert_close(value, plain[path], rtol=0, atol=1e-6)
    taps.remove()
    assert expected is not None


def test_a_mask_of_flash_attention_is_understood(make, monkeypatch):
    """Flash takes a mask of keys [B, K] or none; here a stand-in under its own name."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    monkeypatch.setattr(AttentionInterface, "_global_mapping", dict(AttentionInterface._global_mapping))
    seen = []

    def flat(module, query, key, value, attention_mask, **options):
        seen.append(attention_mask)
        wide = LEFT[:, None, None].bool() & torch.ones(5, 5, dtype=torch.bool).tril()
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, wide, **options)

    AttentionInterface.register("flat", flat)
    model, inputs = make("llama-left")
    path = "model.layers.1.self_attn"
    with AttentionTap(model, [path]) as tap, torch.no_grad():
        model(**inputs)
        expected = tap.maps()[path]
        model.config._attn_implementation_internal = "flat"
        model.model.config._attn_implementation_internal = "flat"
        monkeypatch.setattr(
            "transformers.models.llama.modeling_llama.create_causal_mask", lambda **kwargs: kwargs["attention_mask"]
        )
        model(**inputs)
        found = tap.maps()[path]
    assert seen[0].shape == (2, 5)
    valid = LEFT.bool()[:, None, :, None].expand_as(found)
    torch.testing.assert_close(found[valid], expected[valid])


@pytest.mark.parametrize("option", ["softcap", "s_aux"])
def test_scores_that_a_map_would_leave_something_out_of_are_refused(make, option):
    model, _ = make("bert")
    attention = model.get_submodule(find_attention(model, "encoder.layer.0"))
    q = torch.randn(1, 2, 3, 8)
    with AttentionTap(model, ["encoder.layer.0"]):
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
        with pytest.raises(InputError, match=option):
            attend(attention, q, q, q, None, **{option: torch.ones(2)})


def test_bad_taps_are_refused_by_name(make):
    model, inputs = make("bert")
    with pytest.raises(RecipeError, match=r"no attention in \"embeddings\""):
        AttentionTap(model, ["embeddings"])
    with AttentionTap(model, ["encoder.layer.0"]), pytest.raises(InputError, match="tapped already"):
        AttentionTap(model, ["encoder.layer.0"])
    with AttentionTap(model, ["encoder.layer.0", "encoder.layer.1"]) as tap:
        with pytest.raises(InputError, match=r"encoder\.layer\.0.*no attention map"):
            tap.maps()
        model(**inputs)
        assert len(tap.maps()) == 2


@pytest.mark.parametrize("family", ["blip-caption", "llama"])
def test_a_closed_tap_does_not_stand_in_the_way_of_generation_with_cached_keys(family, make):
    model, inputs = make(family)
    path = [n for n, m in model.named_modules() if is_attention(m)][-1]
    asked = {k: v for k, v in inputs.items() if k != "decoder_input_ids"}
    expected = model.generate(**asked, max_new_tokens=4, do_sample=False)
    taps = Taps(model, [f"{path}@attention"])
    assert model.generate(**asked, max_new_tokens=4, do_sample=False).equal(expected)
    taps.remove()
