"""Output heads: the lazy logits are the model's own, in every architecture that lets its head rest."""

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from potstill.errors import InputError
from potstill.models.coca import CocaModel
from potstill.models.coca_config import CocaConfig
from potstill.models.output_head import find_output_head
from potstill.taps import Taps, observe

V = 37
SMALL = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "max_position_embeddings": 32, "initializer_range": 0.5, "pad_token_id": 0, "bos_token_id": None,
         "eos_token_id": 1}  # fmt: skip
KEYS = {"num_key_value_heads": 2}
T5 = {"vocab_size": V, "d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 2, "num_heads": 2, "initializer_factor": 3.0,
      "decoder_start_token_id": 0}  # fmt: skip


OPT = {"vocab_size": V, "hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 24, "num_hidden_layers": 2,
       "num_attention_heads": 2, "max_position_embeddings": 32, "init_std": 0.5, "pad_token_id": 0}  # fmt: skip


MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, **KEYS)),
    "llama tied": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, **KEYS, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.5)
    ),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, **KEYS, head_dim=8, final_logit_softcapping=2.0)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, **KEYS, logits_scaling=8.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SMALL, **KEYS, logit_scale=0.25)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**OPT)),
    "bert": lambda: BertForMaskedLM(BertConfig(**{k: v for k, v in SMALL.items() if "token" not in k})),
    "t5 tied": lambda: T5ForConditionalGeneration(T5Config(**T5, tie_word_embeddings=True)),
    "t5 v1.1": lambda: T5ForConditionalGeneration(T5Config(**T5, tie_word_embeddings=False)),
}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name):
    torch.manual_seed(0)
    return MODELS[name]().eval()


def inputs(model):
    ids = torch.randint(2, V, (2, 7), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**batch, "decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else batch


def resting(model, batch, output="logits"):
    head = find_output_head(model, output)
    taps = Taps(model, [])
    return observe(model, batch, taps, [output], [], head).outputs[output], head


@every_model
def test_lazy_logits_are_those_of_the_model_in_value_and_gradient(name):
    model = build(name)
    batch = inputs(model)
    lazy, head = resting(model, batch)
    assert head.verify(batch) == lazy.shape
    expected = model(**batch).logits
    torch.testing.assert_close(lazy.whole(), expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (lazy.whole() * weights).sum().backward()
    found = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    (expected * weights).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-4)


@every_model
def test_after_the_pass_the_head_works_again(name):
    model = build(name)
    batch = inputs(model)
    before = model(**batch).logits
    resting(model, batch)
    assert "forward" not in vars(model.get_output_embeddings())
    assert torch.equal(model(**batch).logits, before)


def test_what_hung_on_the_head_before_comes_back():
    model = build("llama")
    own = model.lm_head.forward
    model.lm_head.forward = lambda x: own(x)  # as accelerate hooks a module
    hung = model.lm_head.forward
    with pytest.raises(InputError, match="unknown"), find_output_head(model).resting():
        raise InputError("unknown")
    assert model.lm_head.forward is hung


def test_the_captions_of_coca_rest_too():
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "image_width": 16, "image_layers": 1, "image_heads": 2}
    sizes |= {"text_width": 16, "text_layers": 1, "text_heads": 2, "multimodal_layers": 1, "vocab_size": V}
    model = CocaModel(CocaConfig(**sizes, embed_dim=8, max_text_length=12)).eval()
    batch = {"pixel_values": torch.randn(2, 3, 16, 16), "input_ids": torch.randint(3, V, (2, 6))}
    lazy, head = resting(model, batch, "caption_logits")
    assert head.verify(batch) == lazy.shape
    torch.testing.assert_close(lazy.whole(), model(**batch).caption_logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", ["temperature", "bias"])
def test_a_model_that_does_more_to_its_logits_is_refused(change):
    class Odd(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 2 if change == "temperature" else output.logits + 1
            return output

    model = Odd(LlamaConfig(**SMALL, **KEYS)).eval()
    with pytest.raises(InputError, match="lm_head: its logits are more than the product with its output head"):
        find_output_head(model).verify(inputs(model))


def test_a_scale_the_model_does_not_apply_is_refused():
    model = build("llama")
    model.config.logit_scale = 0.5
    with pytest.raises(InputError, match="more than the product"):
        find_output_head(model).verify(inputs(model))


def test_verifying_leaves_mode_and_generator_as_they_were():
    model = build("gpt2").train()
    state = torch.get_rng_state()
    find_output_head(model).verify(inputs(model))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_models_whose_head_cannot_rest_say_why():
    bart = BartForConditionalGeneration(
        BartConfig(vocab_size=V, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                   decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24)
    )  # fmt: skip
    with pytest.raises(InputError, match="BartForConditionalGeneration adds final_logits_bias"):
        find_output_head(bart)
    vit = ViTForImageClassification(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=8,
                  patch_size=4)
    )  # fmt: skip
    with pytest.raises(InputError, match="ViTForImageClassification has no output head over a vocabulary"):
        find_output_head(vit)


def test_a_head_that_is_not_called_once_is_refused():
    model = build("llama")
    head = find_output_head(model)
    with pytest.raises(InputError, match="lm_head: the output head was not called once; expected 1 call a pass; got 0"):
        head.logits([])
