from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import AttentionInterface

from potstill.errors import InputError, ShapeError
from potstill.models.coca import CocaConfig, CocaModel
from potstill.models.coca_layers import text_mask
from potstill.models.coca_losses import info_nce, mean_cross_entropy


@pytest.mark.parametrize("pooling", ["cascade", "parallel", "shared"])
@pytest.mark.parametrize("stem", ["conv", "patch"])
def test_outputs_have_the_promised_shapes(tiny_model, batch, pooling, stem):
    model = tiny_model(pooling=pooling, stem=stem, patch_size=4, image_cls_token=stem == "patch")
    out = model(**batch)
    assert out.caption_logits.shape == (4, 7, 30)
    assert {task: tuple(logits.shape) for task, logits in out.task_logits.items()} == {"vqa": (4, 3), "nlvr2": (4, 2)}
    assert out.image_embeds.shape == out.text_embeds.shape == (4, 12)
    assert out.last_hidden_state.shape == (4, 7, 24)
    assert out.memory.shape == (4, 6, 24)
    assert torch.allclose(out.image_embeds.norm(dim=-1), torch.ones(4))
    assert out.logit_scale.item() == pytest.approx(1 / 0.07, rel=1e-5)


@pytest.mark.parametrize("part", ["image_encoder", "text_decoder", "multimodal_decoder"])
def test_every_block_returns_its_hidden_states_as_one_tensor(tiny_model, inputs, part, captured):
    model = tiny_model()
    stores = [captured(model, f"{part}.blocks.{i}") for i in range(2)]
    model(**inputs)
    want = {"image_encoder": (5, 4, 16)}.get(part, (4, 7, 24))  # five pictures are present
    assert [tuple(store[0].shape) for store in stores] == [want, want]


def test_text_blocks_see_one_position_more_only_with_contrast(tiny_model, batch, inputs, captured):
    model = tiny_model()
    store = captured(model, "text_decoder.blocks.1")
    model(**inputs)
    model(**inputs, return_contrastive=True)
    model(**batch)
    model(**batch, return_contrastive=False)
    assert [states.shape[1] for states in store] == [7, 8, 8, 7]
    torch.testing.assert_close(store[1][:, :7], store[0])


def test_a_later_token_does_not_change_earlier_logits(tiny_model, inputs):
    model = tiny_model()
    before = model(**inputs).caption_logits
    inputs["input_ids"][:, 3] = 2
    after = model(**inputs).caption_logits
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3] - before[:, 3]).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_content_and_length_do_not_matter(tiny_model, inputs, attention):
    model = tiny_model()
    model.set_attn_implementation(attention)
    before = model(**inputs, return_contrastive=True)
    valid = inputs["attention_mask"].bool()
    inputs["input_ids"] = F.pad(inputs["input_ids"].masked_fill(~valid, 17), (0, 3), value=5)
    inputs["attention_mask"] = F.pad(inputs["attention_mask"], (0, 3))
    after = model(**inputs, return_contrastive=True)
    torch.testing.assert_close(after.caption_logits[:, :7][valid], before.caption_logits[valid])
    torch.testing.assert_close(after.text_embeds, before.text_embeds)
    torch.testing.assert_close(after.task_logits["vqa"], before.task_logits["vqa"])


def test_padding_on_the_left_gives_the_same_answers(tiny_model, inputs):
    model = tiny_model()
    before = model(**inputs, return_contrastive=True)
    mask, ids = inputs["attention_mask"], inputs["input_ids"]
    shifts = 7 - mask.sum(1)
    inputs["attention_mask"] = torch.stack([row.roll(int(shift)) for row, shift in zip(mask, shifts)])
    inputs["input_ids"] = torch.stack([row.roll(int(shift)) for row, shift in zip(ids, shifts)])
    after = model(**inputs, return_contrastive=True)
    torch.testing.assert_close(after.task_logits["vqa"], before.task_logits["vqa"])
    torch.testing.assert_close(after.text_embeds, before.text_embeds)
    rows = torch.arange(4)
    torch.testing.assert_close(after.caption_logits[rows, -1], before.caption_logits[rows, mask.sum(1) - 1])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_row_of_padding_alone_gives_no_nan(tiny_model, inputs, attention):
    model = tiny_model()
    model.set_attn_implementation(attention)
    inputs["attention_mask"][1] = 0
    out = model(**inputs, return_contrastive=True)
    assert all(out[key].isfinite().all() for key in ("caption_logits", "text_embeds", "image_embeds"))


def test_no_mask_equals_a_mask_of_ones(tiny_model, inputs):
    model = tiny_model()
    inputs["attention_mask"] = torch.ones(4, 7)
    with_mask = model(**inputs, return_contrastive=True)
    del inputs["attention_mask"]
    without = model(**inputs, return_contrastive=True)
    torch.testing.assert_close(with_mask.caption_logits, without.caption_logits)
    torch.testing.assert_close(with_mask.text_embeds, without.text_embeds)


def test_an_absent_picture_does_not_matter(tiny_model, inputs):
    model = tiny_model()
    before = model(**inputs)
    inputs["pixel_values"][:3, 1] = float("nan")
    after = model(**inputs)
    torch.testing.assert_close(after.caption_logits, before.caption_logits)
    alone = {**inputs, "pixel_values": inputs["pixel_values"][:3, 0], "image_mask": None}
    alone = model(**{key: None if value is None else value[:3] for key, value in alone.items()})
    torch.testing.assert_close(alone.caption_logits, before.caption_logits[:3])
    torch.testing.assert_close(alone.image_embeds, before.image_embeds[:3])


def test_the_second_picture_and_the_order_of_pictures_matter(tiny_model, inputs):
    model = tiny_model()
    before = model(**inputs).task_logits["nlvr2"][3]
    inputs["pixel_values"][3] = inputs["pixel_values"][3].flip(0)
    swapped = model(**inputs)
    assert (swapped.task_logits["nlvr2"][3] - before).abs().max() > 1e-3
    inputs["pixel_values"][3, 1] += 1
    assert (model(**inputs).task_logits["nlvr2"][3] - swapped.task_logits["nlvr2"][3]).abs().max() > 1e-3


def test_only_present_pictures_are_encoded(tiny_model, inputs, captured):
    model = tiny_model()
    store = captured(model, "image_encoder")
    model(**inputs)
    assert len(store[0]) == int(inputs["image_mask"].sum()) == 5


def test_the_cls_token_sees_every_valid_token_and_no_token_sees_it(tiny_model, inputs):
    model = tiny_model()
    before = model(**inputs, return_contrastive=True)
    for position in range(4):
        changed = inputs["input_ids"].clone()
        changed[:, position] = 2
        embeds = model(**{**inputs, "input_ids": changed}, return_contrastive=True).text_embeds
        assert (embeds - before.text_embeds).abs().amax(1).min() > 1e-4
    torch.testing.assert_close(before.caption_logits, model(**inputs, return_contrastive=False).caption_logits)


def test_the_text_mask_by_hand():
    valid = torch.tensor([[1, 1, 0]])
    paper = text_mask(valid, 3, has_cls=True, layout="paper")[0, 0].int()
    assert paper.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    legacy = text_mask(valid, 3, has_cls=True, layout="open_clip")[0, 0].int()
    assert legacy.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    assert text_mask(valid, 1, has_cls=False, layout="paper")[0, 0].int().tolist() == [[1, 1, 1]]
    assert text_mask(None, 3, has_cls=True, layout="paper") is None


def test_parts_run_alone(tiny_model, inputs):
    model = tiny_model()
    both = model(**inputs, return_contrastive=True)
    pictures = model(pixel_values=inputs["pixel_values"], image_mask=inputs["image_mask"])
    texts = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], return_contrastive=True)
    torch.testing.assert_close(pictures.image_embeds, both.image_embeds)
    torch.testing.assert_close(texts.text_embeds, both.text_embeds)
    assert pictures.caption_logits is None
    assert texts.caption_logits is None


def test_the_loss_is_the_weighted_sum_of_hand_made_terms(tiny_model, batch):
    model = tiny_model(caption_weight=3.0, contrastive_weight=0.5)
    out = model(**batch)
    labels = batch["caption_labels"]
    picked = out.caption_logits.log_softmax(-1)[labels != -100].gather(1, labels[labels != -100][:, None])
    scores = out.logit_scale * out.image_embeds[:2] @ out.text_embeds[:2].T
    want = {
        "caption": -picked.mean(),
        "contrastive": (F.cross_entropy(scores, torch.arange(2)) + F.cross_entropy(scores.T, torch.arange(2))) / 2,
        "vqa": F.cross_entropy(out.task_logits["vqa"][2:3], torch.tensor([2])),
        "nlvr2": F.cross_entropy(out.task_logits["nlvr2"][3:], torch.tensor([1])),
    }
    assert out.losses.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(out.losses[name], value)
    total = 3 * want["caption"] + 0.5 * want["contrastive"] + want["vqa"] + want["nlvr2"]
    torch.testing.assert_close(out.loss, total)


def test_without_labels_there_is_no_loss(tiny_model, inputs):
    out = tiny_model()(**inputs)
    assert out.loss is None
    assert out.losses is None


def test_losses_without_counting_rows_are_zero_with_zero_gradient(tiny_model, batch):
    model = tiny_model()
    for key in ("caption_labels", "vqa_labels", "nlvr2_labels"):
        batch[key] = torch.full_like(batch[key], -100)
    out = model(**batch)
    out.loss.backward()
    assert out.loss.item() == 0.0
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in model.parameters())


def test_info_nce_is_symmetric_and_ignores_other_rows():
    torch.manual_seed(0)
    image, text = F.normalize(torch.randn(5, 8), dim=-1), F.normalize(torch.randn(5, 8), dim=-1)
    rows, scale = torch.tensor([True, False, True, True, False]), torch.tensor(10.0)
    value = info_nce(image, text, scale, rows)
    torch.testing.assert_close(value, info_nce(text, image, scale, rows))
    torch.testing.assert_close(value, info_nce(image[rows], text[rows], scale, rows[rows]))
    assert info_nce(image, text, scale, torch.tensor([True] + [False] * 4)).item() == 0.0


def test_mean_cross_entropy_of_equal_scores_is_the_log_of_the_classes():
    loss = mean_cross_entropy(torch.zeros(3, 7, dtype=torch.bfloat16), torch.tensor([1, -100, 6]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(7))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("pooling", ["cascade", "shared"])
def test_every_parameter_gets_a_gradient(tiny_model, batch, tied, pooling):
    model = tiny_model(tie_word_embeddings=tied, pooling=pooling).train()
    model(**batch).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # A bias of the keys adds the same to all scores of a query, so its gradient is zero by mathematics, up to rounding.
    assert [name for name in without if not name.endswith("k_proj.bias")] == []


def test_every_parameter_is_initialised(tiny_config, monkeypatch):
    # Memory that is handed out uninitialised shows here as the mark; open_clip had such a parameter for years.
    mark = 12345.0
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(mark))
    for changes in ({}, {"stem": "patch", "patch_size": 4, "image_cls_token": True, "tie_word_embeddings": False}):
        model = CocaModel(tiny_config(**changes))
        assert [name for name, p in model.named_parameters() if (p == mark).any()] == []


def test_the_last_layer_of_each_branch_starts_smaller(tiny_config):
    model = CocaModel(tiny_config(text_width=64, text_layers=4, multimodal_layers=4))
    block = model.multimodal_decoder.blocks[0]
    for last, fan_in in ((block.self_attn.out_proj, 64), (block.cross_attn.out_proj, 64), (block.mlp.fc2, 256)):
        assert last.weight.std().item() == pytest.approx((2 * 8 * fan_in) ** -0.5, rel=0.1)
    assert block.self_attn.q_proj.weight.std().item() == pytest.approx(64**-0.5, rel=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_saving_and_loading_is_exact(tiny_model, batch, tmp_path, tied):
    model = tiny_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = CocaModel.from_pretrained(tmp_path)
    assert loaded.config.task_labels == model.config.task_labels
    assert not loaded.training
    assert [f.name for f in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert (loaded.lm_head.weight is loaded.text_decoder.token_embedding.weight) == tied
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in model.named_parameters()]
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values()):
        assert torch.equal(a, b), name
    assert torch.equal(model(**batch).loss, loaded(**batch).loss)


def test_the_same_input_gives_the_same_output(tiny_model, batch):
    assert torch.equal(tiny_model()(**batch).caption_logits, tiny_model()(**batch).caption_logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16_trains_with_finite_gradients(tiny_model, batch, attention):
    model = tiny_model().to(torch.bfloat16).train()
    model.set_attn_implementation(attention)
    out = model(**batch)
    out.loss.backward()
    assert out.caption_logits.dtype == torch.bfloat16
    assert out.loss.dtype == out.image_embeds.dtype == out.logit_scale.dtype == torch.float32
    assert out.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_autocast_is_close_to_full_precision(tiny_model, batch):
    model = tiny_model()
    with torch.autocast("cpu", torch.bfloat16):
        low = model(**batch).loss
    assert low.item() == pytest.approx(model(**batch).loss.item(), rel=0.05)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_equal_gradients(tiny_model, batch, use_reentrant, captured):
    plain, saving = tiny_model().train(), tiny_model().train()
    saving.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    passes = captured(saving, "multimodal_decoder.blocks.0.self_attn.q_proj")
    for model in (plain, saving):
        model(**batch).loss.backward()
    assert len(passes) == 2  # computed again for the backward pass
    for (name, a), b in zip(plain.named_parameters(), saving.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_eager_and_sdpa_agree_in_value_and_gradient(tiny_model, batch):
    models = [tiny_model(), tiny_model()]
    for model, attention in zip(models, ("sdpa", "eager")):
        model.set_attn_implementation(attention)
        model(**batch).loss.backward()
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_a_registered_attention_function_is_used_by_every_attention_module(tiny_model, inputs):
    calls = []

    def spy(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        calls.append((type(module).__name__, module.layer_idx, module.is_causal, module.num_key_value_groups))
        output = F.scaled_dot_product_attention(query, key, value, attention_mask, scale=module.scaling)
        return output.transpose(1, 2).contiguous(), None

    AttentionInterface.register("potstill_test_spy", spy)
    model = tiny_model()
    before = model(**inputs).caption_logits
    model.set_attn_implementation("potstill_test_spy")
    torch.testing.assert_close(model(**inputs).caption_logits, before)
    assert len(calls) == 2 + 2 + 2 + 2 * 2  # image blocks, poolers, text blocks, self- and cross-attention
    assert {call[0] for call in calls} == {"CocaAttention"}
    assert [index for _, index, is_causal, _ in calls if is_causal] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": torch.zeros(4, 2, 3, 16, 8)}, "pixel_values"),
        ({"pixel_values": torch.zeros(4, 3, 3, 16, 16), "image_mask": None}, "max_images"),
        ({"image_mask": torch.ones(4, 3, dtype=torch.bool)}, "image_mask"),
        ({"image_mask": torch.tensor([[True, False]] * 3 + [[False, True]])}, "first slot"),
        ({"attention_mask": torch.ones(4, 6)}, "attention_mask"),
        ({"input_ids": torch.ones(3, 7, dtype=torch.long), "attention_mask": None}, "4 rows"),
        ({"input_ids": torch.ones(4, 13, dtype=torch.long), "attention_mask": None}, "max_text_length"),
        ({"caption_labels": torch.zeros(4, 6, dtype=torch.long)}, "caption_labels"),
        ({"vqa_labels": torch.zeros(3, dtype=torch.long)}, "vqa_labels"),
        ({"input_ids": None, "attention_mask": None, "caption_labels": None}, "nlvr2_labels: labels need"),
    ],
)
def test_shapes_that_do_not_fit_are_named(tiny_model, batch, changes, message):
    with pytest.raises(ShapeError, match=message):
        tiny_model()(**{**batch, **changes})


def test_an_unknown_key_is_refused_with_the_nearest_name(tiny_model, batch):
    with pytest.raises(InputError, match='Did you mean "sample_id"'):
        tiny_model()(**batch, sample_ids=torch.zeros(4))


def test_labels_without_a_head_are_refused_only_if_a_row_uses_them(tiny_model, batch):
    model = tiny_model()
    model(**batch, entailment_labels=torch.full((4,), -100))
    with pytest.raises(InputError, match='no head for task "entailment"'):
        model(**batch, entailment_labels=torch.tensor([-100, -100, 1, -100]))


def test_no_input_at_all_is_refused(tiny_model):
    with pytest.raises(InputError, match="nothing to do"):
        tiny_model()()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_widht": 32}, 'Did you mean "image_width"'),
        ({"stem": "convolution"}, "patch or conv"),
        ({"image_layers": 0}, "image_layers"),
        ({"image_layers": True}, "image_layers"),
        ({"text_heads": 5}, "a divisor of text_width"),
        ({"pooler_heads": 5}, "a divisor of text_width"),
        ({"stem": "patch", "patch_size": 5}, "a divisor of image_size"),
        ({"layout": "open_clip"}, "shared"),
        ({"dropout": -0.1}, "dropout"),
        ({"task_labels": {"vqa": []}}, "task_labels.vqa"),
        ({"task_labels": {"vqa": ["a", "a"]}}, "task_labels.vqa"),
        ({"task_labels": {"caption": ["a"]}}, "task_labels"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tiny_config, changes, message):
    with pytest.raises(InputError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("preset", "image_millions", "text_millions"), [("coca_base", 86, 297), ("coca_large", 303, 484)]
)
def test_presets_have_the_parameter_counts_of_the_paper(preset, image_millions, text_millions):
    with torch.device("meta"):
        model = CocaModel(getattr(CocaConfig, preset)())

    def millions(*parts):
        return sum(p.numel() for part in parts for p in part.parameters()) / 1e6

    assert millions(model.image_encoder) == pytest.approx(image_millions, rel=0.01)
    assert millions(model.text_decoder, model.multimodal_decoder, model.lm_head) == pytest.approx(
        text_millions, rel=0.01
    )


def test_the_small_preset_makes_36_tokens_of_48_pixels():
    config = CocaConfig.small_scenes()
    model = CocaModel(config)
    assert config.image_tokens == 36
    assert model.image_encoder(torch.zeros(1, 3, 48, 48)).shape == (1, 36, 128)
    assert 2.2e6 < sum(p.numel() for p in model.parameters()) < 2.8e6


def test_a_step_of_training_lowers_the_loss(tiny_model, batch):
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
