"""What our BLIP recipes and docs/models/blip.md rely on in transformers; a change there is to fail here."""

import pytest
import torch

from potstill.taps import Taps, observe
from potstill.taps.inputs import model_inputs

TAP = "text_decoder.cls@output"


@pytest.fixture
def answering(tiny):
    model, batch = tiny("blip-vqa")
    batch = {k: v for k, v in batch.items() if k != "labels"}
    return model, {**batch, "decoder_input_ids": torch.tensor([[1, 9, 8, 2], [1, 7, 2, 0]])}


def predicted(model, batch):
    with Taps(model, [TAP]) as taps, torch.no_grad():
        return observe(model, model_inputs(model)(batch), taps, (), [TAP]).tapped[TAP]


def test_the_model_is_given_the_question_the_picture_and_the_answer_but_no_labels(answering):
    model, batch = answering
    extra = {"labels": batch["decoder_input_ids"], "vqa_labels": batch["decoder_input_ids"], "sample_id": torch.ones(2)}
    assert set(model_inputs(model)({**batch, **extra})) == set(batch)


def cut(batch, question=None, answer=None):
    """The second row of the batch without its padding."""
    lengths = {"input_ids": question, "attention_mask": question, "decoder_input_ids": answer}
    return {k: v[1:, : lengths[k]] if k in lengths else v[1:] for k, v in batch.items()}


def test_padding_of_an_answer_changes_no_prediction(answering):
    model, batch = answering
    torch.testing.assert_close(predicted(model, batch)[1:, :3], predicted(model, cut(batch, answer=3)))


def test_padding_of_a_question_is_masked_in_the_encoder(answering):
    model, batch = answering
    states = []
    with Taps(model, ["text_encoder"]) as taps, torch.no_grad():
        for given in (batch, cut(batch, question=4)):
            states.append(observe(model, given, taps, (), ["text_encoder"]).tapped["text_encoder"])
    torch.testing.assert_close(states[0][1:, :4], states[1])


def test_padding_of_a_question_is_read_by_the_decoder_in_spite_of_its_mask(answering):
    """BlipTextAttention hands no mask of the keys on to its cross-attention."""
    model, batch = answering
    change = (predicted(model, batch)[1:, :3] - predicted(model, cut(batch, 4, 3))).abs().max()
    assert change > 1e-4


def test_labels_without_decoder_input_are_fed_to_the_decoder_as_they_are(answering):
    model, batch = answering
    batch = {k: v for k, v in batch.items() if k != "decoder_input_ids"}
    with pytest.raises(IndexError):
        model(**batch, labels=torch.tensor([[1, 9, 2, -100], [1, 7, 2, -100]]))


def test_generate_reads_the_padding_of_a_question(answering):
    model, batch = answering
    seen = []
    handle = model.text_decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_attention_mask"]), with_kwargs=True
    )
    try:
        asked = {k: batch[k] for k in ("pixel_values", "input_ids", "attention_mask")}
        model.generate(**asked, max_new_tokens=1)
    finally:
        handle.remove()
    assert (batch["attention_mask"] == 0).any()
    assert (seen[0] != 0).all()


def test_generate_of_a_caption_changes_the_prompt_it_is_given(tiny):
    model, batch = tiny("blip-caption")
    prompt = torch.tensor([[5, 6, 7], [5, 8, 9]])
    model.generate(pixel_values=batch["pixel_values"], input_ids=prompt, max_new_tokens=1)
    assert prompt[:, 0].tolist() == [model.config.text_config.bos_token_id] * 2


def test_the_image_tower_puts_a_class_token_first_and_is_normed_twice(answering):
    model, batch = answering
    shapes = []
    handle = model.vision_model.post_layernorm.register_forward_hook(lambda m, a, out: shapes.append(tuple(out.shape)))
    try:
        predicted(model, batch)
    finally:
        handle.remove()
    assert shapes == [(2, 1 + 4, 16), (2, 16)]


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_a_student_of_fewer_heads_has_the_teachers_tensors(tiny, heads):
    from potstill.students import build_student

    teacher, _ = tiny("blip-vqa")
    overrides = {part: {"num_attention_heads": heads} for part in ("vision_config", "text_config")}
    student, record = build_student("config", teacher, {"overrides": overrides})
    assert record.fresh == []
    assert student.vision_model.encoder.layers[0].self_attn.num_heads == heads
    assert student.text_encoder.encoder.layer[0].crossattention.self.num_attention_heads == heads
