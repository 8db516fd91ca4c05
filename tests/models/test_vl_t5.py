import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration

from potstill.data.scene_source import build_scenes
from potstill.errors import InputError, RecipeError, ShapeError
from potstill.models.load import load_model
from potstill.models.vl_t5 import VLT5Config, VLT5ForConditionalGeneration, from_t5
from potstill.students import build_student

T, N, V = 5, 4, 50
SIZES = {"d_model": 16, "d_ff": 32, "d_kv": 4, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}


def make(seed=0, **changes):
    torch.manual_seed(seed)
    config = {**SIZES, "image_size": 16, "visual_layers": 1, "vocab_size": V, **changes}
    return VLT5ForConditionalGeneration(VLT5Config.small_scenes(**config)).eval()


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(T) < torch.tensor([[5], [3], [4]])
    labels = torch.randint(3, V, (3, 3), generator=generator)
    labels[1, 2] = -100
    return {
        "pixel_values": torch.randn(3, 3, 16, 16, generator=generator),
        "input_ids": torch.randint(3, V, (3, T), generator=generator) * mask,
        "attention_mask": mask.long(),
        "labels": labels,
    }


def asked(batch):
    return {k: v for k, v in batch.items() if k != "labels"}


def test_shapes_and_the_loss_are_those_of_the_labels(model, batch):
    out = model(**batch)
    assert out.logits.shape == (3, 3, V)
    assert out.encoder_last_hidden_state.shape == (3, T + N, 16)
    counts = batch["labels"] != -100
    expected = torch.nn.functional.cross_entropy(out.logits[counts], batch["labels"][counts])
    torch.testing.assert_close(out.loss, expected)


def test_the_picture_and_the_prompt_both_matter(model, batch):
    logits = model(**batch).logits
    other = {**batch, "pixel_values": batch["pixel_values"].flip(0)}
    assert (model(**other).logits - logits).abs().max() > 1e-3
    other = {**batch, "input_ids": batch["input_ids"].flip(1), "attention_mask": None}
    assert (model(**other).logits - logits).abs().max() > 1e-3


def test_padding_of_the_prompt_changes_nothing(model, batch):
    before = model(**batch).logits
    garbage = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 7)
    torch.testing.assert_close(model(**{**batch, "input_ids": garbage}).logits, before)
    wider = {
        "input_ids": torch.cat([garbage, torch.full((3, 2), 9)], 1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.zeros(3, 2).long()], 1),
    }
    torch.testing.assert_close(model(**{**batch, **wider}).logits, before)


def test_visual_tokens_have_no_position_bias_and_text_tokens_have_that_of_t5(model):
    attention = model.encoder.block[0].layer[0].SelfAttention
    bias = attention.compute_bias(T + N, T + N)
    assert bias.shape == (1, 4, T + N, T + N)
    assert not bias[:, :, T:].any()
    assert not bias[:, :, :, T:].any()
    plain = super(type(attention), attention).compute_bias(T, T)
    assert torch.equal(bias[:, :, :T, :T], plain)
    assert plain.abs().min() > 0


def test_only_their_places_tell_equal_patches_apart(model):
    grey = torch.full((1, 3, 16, 16), 0.3)
    tokens = make(stem="patch", patch_size=8).visual(grey)[0]
    assert (tokens[0] - tokens[1]).abs().max() > 1e-2
    assert (tokens[0] - tokens[2]).abs().max() > 1e-2


def test_text_stands_before_the_visual_tokens(model, batch):
    whole = model.encode(**asked(batch)).last_hidden_state
    swapped = model.encode(**{**asked(batch), "input_ids": batch["input_ids"].roll(1, 0)}).last_hidden_state
    assert whole.shape == swapped.shape == (3, T + N, 16)
    alone = model.visual(batch["pixel_values"])
    seen = []
    handle = model.encoder.block[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.encode(**asked(batch))
    handle.remove()
    torch.testing.assert_close(seen[0][:, :T], model.shared(batch["input_ids"]))
    torch.testing.assert_close(seen[0][:, T:], alone)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_agrees_with_forward_and_reads_the_picture_once(model, batch, beams):
    calls = []
    handle = model.visual.register_forward_hook(lambda *args: calls.append(1))
    ids = model.generate(**asked(batch), max_new_tokens=6, num_beams=beams, do_sample=False)
    handle.remove()
    assert calls == [1]
    assert (ids[:, 0] == model.config.decoder_start_token_id).all()
    if beams == 1:
        logits = model(**asked(batch), decoder_input_ids=ids[:, :-1]).logits
        ended = (ids[:, 1:] == 2).cumsum(1) - (ids[:, 1:] == 2).long() > 0
        assert torch.equal(logits.argmax(-1)[~ended], ids[:, 1:][~ended])


def test_a_row_is_written_the_same_alone_and_among_others(model, batch):
    together = model.generate(**asked(batch), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    for row in range(3):
        length = int(batch["attention_mask"][row].sum())
        one = {k: v[row : row + 1] for k, v in asked(batch).items()}
        one["input_ids"], one["attention_mask"] = one["input_ids"][:, :length], None
        assert torch.equal(model.generate(**one, max_new_tokens=5, min_new_tokens=5, do_sample=False)[0], together[row])


def test_it_comes_back_from_disk_as_it_was(tmp_path, model, batch):
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert type(again) is VLT5ForConditionalGeneration
    assert again.config.image_tokens == N
    assert again.config.decoder_start_token_id == 0
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "potstill_vl_t5"
    assert "visual.rows" in load_file(tmp_path / "model.safetensors")


def test_every_projection_starts_as_t5_starts_it():
    big = make(d_model=64, d_kv=16, d_ff=128, num_heads=4)
    plain = T5ForConditionalGeneration(T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=V))
    for ours, theirs in (
        (big.encoder.block[0], plain.encoder.block[0]),
        (big.visual.block[0], plain.encoder.block[1]),
        (big.decoder.block[1], plain.decoder.block[1]),
    ):
        stds = {name: p.std().item() for name, p in theirs.named_parameters() if p.ndim == 2}
        for name, parameter in ours.named_parameters():
            if parameter.ndim == 2:
                assert parameter.std().item() == pytest.approx(stds[name], rel=0.15), name


def test_gradients_reach_everything_and_checkpointing_does_not_change_them(batch):
    def gradients(checkpointing):
        model = make(3).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch).loss.backward()
        return {name: p.grad for name, p in model.named_parameters()}

    plain, saved = gradients(False), gradients(True)
    assert all(g is not None and g.abs().sum() > 0 for g in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(saved[name], gradient, msg=name)


def test_eager_and_sdpa_agree(batch):
    model = make(4)
    before = model(**batch).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**batch).logits, before, rtol=1e-4, atol=1e-5)
    maps = model(**batch, output_attentions=True).encoder_attentions
    assert maps[0].shape == (3, 4, T + N, T + N)
    assert not maps[0][1, :, :, 3:T].any()  # padding of the prompt is not read, visual tokens are
    assert (maps[0][1, :, :, T:] > 0).all()


def test_half_precision_runs(model, batch):
    half = make().to(torch.bfloat16)
    out = half(**batch)
    assert out.logits.dtype == torch.bfloat16
    assert out.loss.isfinite()
    assert half.generate(**asked(batch), max_new_tokens=2).shape[0] == 3


def test_a_picture_alone_gives_its_tokens(model, batch):
    out = model(pixel_values=batch["pixel_values"])
    assert out.logits is None
    assert torch.equal(out.encoder_last_hidden_state, model.visual(batch["pixel_values"]))


def test_a_tuple_comes_if_asked_for(model, batch):
    assert torch.equal(model(**batch, return_dict=False)[1], model(**batch).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": None}, "no picture"),
        ({"pixel_values": torch.zeros(3, 3, 16, 18)}, "pixel_values"),
        ({"pixel_values": torch.zeros(3, 2, 3, 16, 16)}, "pixel_values"),
        ({"input_ids": torch.zeros(2, 4).long()}, "input_ids"),
        ({"labels": None}, "nothing to write"),
    ],
)
def test_wrong_inputs_are_named(model, batch, changes, message):
    with pytest.raises((InputError, ShapeError), match=message):
        model(**{**batch, **changes})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"imgae_size": 16}, 'Did you mean "image_size"'),
        ({"stem": "cnv"}, "conv or patch"),
        ({"stem": "patch", "patch_size": 7}, "a divisor of image_size 16"),
        ({"visual_layers": 0}, "visual_layers"),
        ({"num_heads": 2.5}, "num_heads"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(Exception, match=message) as caught:
        make(**fields)
    assert isinstance(caught.value, InputError) or "num_heads" in fields


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    torch.manual_seed(5)
    t5 = T5ForConditionalGeneration(T5Config(**SIZES, vocab_size=V, dropout_rate=0.0, feed_forward_proj="gated-gelu"))
    folder = tmp_path_factory.mktemp("t5")
    t5.save_pretrained(folder)
    return folder


def test_the_text_part_can_be_a_t5_checkpoint(t5_folder):
    model, t5 = from_t5(t5_folder, image_size=16, stem="conv"), load_model(t5_folder)
    own, theirs = model.state_dict(), t5.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)
    assert all(name.startswith("visual.") for name in own.keys() - theirs.keys())
    assert model.config.feed_forward_proj == "gated-gelu"
    ids = torch.randint(3, V, (2, 3))
    encoded = t5.encoder(input_ids=ids)
    scored = [m(encoder_outputs=encoded, decoder_input_ids=ids).logits for m in (model, t5)]
    torch.testing.assert_close(*scored)


def test_a_checkpoint_that_is_no_t5_or_says_otherwise_is_refused(t5_folder, tmp_path):
    make().save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="is no T5 that writes"):
        from_t5(tmp_path)
    with pytest.raises(InputError, match="the checkpoint says otherwise"):
        from_t5(t5_folder, d_model=32)
    with pytest.raises(RecipeError, match="text_model"):
        from_t5("./nowhere")


def test_a_recipe_can_build_one_for_the_scenes():
    source = build_scenes(form="text_to_text", tasks=["vqa", "caption"], concepts=12)
    fields = {**SIZES, "stem": "conv", "visual_layers": 1}
    model, record = build_student(
        "new", None, {"family": "vl_t5", "fields": fields, "data_fields": source.model_fields}
    )
    assert record.student_class == "VLT5ForConditionalGeneration"
    data = source.split("train")
    out = model(**{k: v for k, v in source.collator(data.__getitems__(range(4))).items()
                   if k in ("pixel_values", "input_ids", "attention_mask", "labels")})  # fmt: skip
    assert out.loss.isfinite()


def test_a_recipe_can_start_one_from_a_t5_and_its_tokenizer(t5_folder, tmp_path):
    import shutil

    from potstill.data.scenes import build_tokenizer

    shutil.copytree(t5_folder, tmp_path / "t5")
    tokens = build_tokenizer(12, prompts=True)
    torch.manual_seed(6)
    config = T5Config(**SIZES, vocab_size=len(tokens) + 8, pad_token_id=0, eos_token_id=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tokens.save_pretrained(tmp_path / "t5")
    folder = str(tmp_path / "t5")
    source = build_scenes(form="text_to_text", tasks=["vqa"], concepts=12, tokenizer=folder)
    fields = {"stem": "conv", "visual_layers": 1}
    arguments = {"family": "vl_t5", "fields": fields, "text_model": folder, "data_fields": source.model_fields}
    model, record = build_student("new", None, arguments)
    assert model.config.vocab_size == len(tokens) + 8
    assert model.config.image_size == 48
    assert torch.equal(model.lm_head.weight, load_model(folder).lm_head.weight)
    assert len(record.copied) == len(load_model(folder).state_dict())
    with pytest.raises(RecipeError, match="text_model"):
        build_student("new", None, {**arguments, "family": "coca"})
