"""What the teacher showed, to arrays and back: every form, every shape, with known rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import InputError, NumericsError, RecipeError, ShapeError
from potstill.losses import TopK, cached_loss, kd_kl
from potstill.teachers.cache.codecs import arrays_of, decode, encode, place, vectors_of
from potstill.teachers.cache.fields import Field, check_form, shape_of
from potstill.teachers.cache.packing import bits_for, from_bytes, pack, packed_bytes, to_bytes, unpack

MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]).bool()


@given(st.integers(1, 32), st.integers(0, 40), st.integers(0, 2**32))
def test_packed_ids_come_back(bits, count, seed):
    ids = np.random.default_rng(seed).integers(0, min(2**bits, 2**31 - 1), count)
    packed = pack(ids, bits)
    assert len(packed) == packed_bytes(count, bits)
    assert unpack(packed, bits)[:count].tolist() == ids.tolist()


def test_ids_take_as_many_bits_as_the_vocabulary_needs():
    assert [bits_for(n) for n in (1, 2, 3, 200, 256, 257, 49_152, 151_936)] == [1, 1, 2, 8, 8, 9, 16, 18]


def test_eight_bits_are_finest_where_the_mass_is():
    log_probs = torch.randn(50, 64).mul(4).log_softmax(-1).sort(descending=True).values.numpy()
    found = from_bytes(*to_bytes(log_probs))
    error = np.abs(found - log_probs)
    assert error[:, 0].max() < 0.01
    assert error.max() < 0.2
    assert (np.exp(log_probs) * error).sum(-1).max() < 0.02


def round_trip(field, value, mask=None, generator=None):
    rows = encode(field, value, mask, generator)
    arrays = {name: np.concatenate([row[name] for row in rows]) for name in arrays_of(field)}
    for name, (dtype, _) in arrays_of(field).items():
        assert arrays[name].dtype == dtype, name
    positions = np.zeros(len(value), int) if mask is None else mask.sum(1).numpy()
    return place(field, decode(field, arrays, vectors_of(field, positions)), mask, len(value))


@pytest.mark.parametrize(
    ("codec", "tolerance"), [("fp32", 0.0), ("fp16", 5e-4), ("bf16", 4e-3), ("int8", 0.5 / 127 + 1e-6)]
)
def test_whole_tensors_come_back_as_their_form_rounds(codec, tolerance):
    value = torch.randn(3, 5, 8)
    field = Field("blocks.0", "whole", codec, (-1, 8), mask="attention_mask")
    found = round_trip(field, value, MASK)["values"]
    assert found.dtype == torch.float32
    scale = value.abs().amax(-1, keepdim=True) if codec == "int8" else value.abs()
    assert ((found - value).abs() <= tolerance * scale)[MASK].all()
    assert found[~MASK].isnan().all()


@pytest.mark.parametrize("shape", [(7,), (4, 6), (2, 4, 4)])
def test_tensors_of_a_fixed_shape_need_no_mask(shape):
    value = torch.randn(3, *shape)
    assert round_trip(Field("x", "whole", "fp32", shape), value)["values"].equal(value)


def test_maps_of_texts_keep_the_queries_and_keys_that_are_no_padding():
    maps = torch.rand(3, 2, 5, 5) * MASK[:, None, None, :]
    field = Field("attn@attention", "whole", "fp16", (2, -1, -1), mask="attention_mask")
    found = round_trip(field, maps, MASK)["values"]
    queries = MASK[:, None, :, None].expand_as(maps)
    torch.testing.assert_close(found[queries], maps[queries], rtol=1e-3, atol=1e-4)
    assert found[~queries].isnan().all()


def test_maps_over_a_picture_keep_all_its_keys():
    maps = torch.rand(3, 2, 5, 9)
    field = Field("attn@cross_attention", "whole", "fp16", (2, -1, 9), mask="attention_mask")
    found = round_trip(field, maps, MASK)["values"]
    queries = MASK[:, None, :, None].expand_as(maps)
    torch.testing.assert_close(found[queries], maps[queries], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("codec", ["fp16", "u8"])
@pytest.mark.parametrize("k", [5, 8])
def test_the_most_likely_classes_come_back_with_the_mass_of_the_rest(codec, k):
    logits = 3 * torch.randn(3, 5, 100)
    field = Field("logits", "top_k", codec, (-1, 100), "labels", False, 100, k, (1.0, 2.0), True)
    found = round_trip(field, logits, MASK)
    log_p = logits.log_softmax(-1)
    values, ids = log_p.topk(k)
    assert found["ids"][MASK].equal(ids[MASK].int())
    assert found["ids"][~MASK].abs().sum() == 0
    assert found["log_probs"][~MASK].isnan().all()
    torch.testing.assert_close(found["log_probs"][MASK], values[MASK], rtol=0, atol=0.004 if codec == "fp16" else 0.1)
    torch.testing.assert_close(found["logsumexp"][MASK], logits.logsumexp(-1)[MASK])
    for i, t in enumerate(field.temperatures):
        rest = (logits / t).log_softmax(-1).scatter(-1, ids, -torch.inf).logsumexp(-1)
        torch.testing.assert_close(found["tail"][..., i][MASK], rest[MASK], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("codec", "tolerance"), [("fp16", 1e-3), ("u8", 0.02)])
def test_rounding_hardly_moves_the_loss(codec, tolerance):
    logits, student = 3 * torch.randn(64, 1, 500), 3 * torch.randn(64, 1, 500)
    field = Field("logits", "top_k", codec, (1, 500), vocab=500, k=32, temperatures=(1.0,))
    found = round_trip(field, logits)
    values, ids = logits.log_softmax(-1).topk(32)
    tail = logits.log_softmax(-1).scatter(-1, ids, -torch.inf).logsumexp(-1)
    exact = cached_loss(student, TopK(ids, values, {1.0: tail}, 500))
    rounded = cached_loss(student, TopK(found["ids"], found["log_probs"], {1.0: found["tail"][..., 0]}, 500))
    assert abs(rounded / exact - 1) < tolerance


def test_draws_are_those_of_the_teacher_and_their_counts_add_up():
    logits = 2 * torch.randn(3, 5, 30)
    field = Field("logits", "drawn", "fp16", (-1, 30), "labels", vocab=30, k=50)
    found = round_trip(field, logits, MASK, torch.Generator().manual_seed(0))
    counts = found["counts"].float()
    assert (counts.sum(-1)[MASK] == 50).all()
    assert counts[~MASK].sum() == 0
    used = found["counts"] > 0
    log_p = logits.log_softmax(-1).gather(-1, found["ids"].long())
    torch.testing.assert_close(found["log_probs"][used], log_p[used], rtol=0, atol=0.005)
    for row in found["ids"][MASK].split(1):
        drawn = row[0][: int((row[0] > 0).sum())]
        assert len(drawn.unique()) == len(drawn)


def test_kept_draws_have_the_mean_of_the_forward_kl():
    teacher, student = torch.randn(1, 1, 30), torch.randn(1, 1, 30)
    field = Field("logits", "drawn", "fp16", (1, 30), vocab=30, k=20)
    values = []
    for seed in range(400):
        found = round_trip(field, teacher, None, torch.Generator().manual_seed(seed))
        targets = TopK(found["ids"], found["log_probs"], {}, 30, found["counts"], mode="sampled")
        values.append(cached_loss(student, targets))
    values = torch.stack(values)
    assert abs(values.mean() - kd_kl(student, teacher)) < 4 * values.std() / 20


def test_the_position_before_a_label_is_kept_where_the_model_is_causal():
    field = Field("logits", "top_k", "fp16", (-1, 9), "labels", shift=True)
    labels = torch.tensor([[-100, -100, 4, 5], [-100, 3, -100, -100]])
    assert field.kept({"labels": labels}).tolist() == [[False, True, True, False], [True, False, False, False]]


def test_the_axes_that_a_mask_counts_vary():
    assert shape_of("logits", torch.zeros(3, 5, 9), MASK) == (-1, 9)
    assert shape_of("a@attention", torch.zeros(3, 2, 5, 5), MASK) == (2, -1, -1)
    assert shape_of("a@cross_attention", torch.zeros(3, 2, 5, 5), MASK) == (2, -1, 5)
    assert shape_of("a@attention", torch.zeros(3, 2, 5, 7), MASK) == (2, -1, 7)
    assert shape_of("pooled", torch.zeros(3, 9), None) == (9,)
    with pytest.raises(ShapeError, match="mask does not fit"):
        shape_of("logits", torch.zeros(3, 6, 9), MASK)


def test_what_is_not_of_the_fields_shape_is_refused():
    field = Field("x", "whole", "fp32", (4, 6))
    for value in (torch.zeros(2, 4, 7), torch.zeros(2, 24)):
        with pytest.raises(ShapeError, match="changes its shape"):
            encode(field, value, None)
    with pytest.raises(InputError, match="no tensor of numbers"):
        encode(field, torch.zeros(2, 4, 6).long(), None)


def test_a_teacher_that_shows_nan_is_refused():
    value = torch.zeros(2, 4)
    value[1, 2] = torch.nan
    with pytest.raises(NumericsError, match="NaN or Inf"):
        encode(Field("x", "whole", "fp32", (4,)), value, None)


def test_a_class_the_teacher_rules_out_is_none_of_the_kept():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, -torch.inf]])
    found = round_trip(Field("x", "top_k", "fp16", (5,), vocab=5, k=2, temperatures=(1.0,)), logits)
    assert found["ids"].tolist() == [[3, 1]]
    assert torch.isfinite(found["tail"]).all()


@pytest.mark.parametrize(
    ("settings", "where"),
    [((-1, "fp16", "bf16", None), "k"), ((8, "fp8", "bf16", None), "log_probs"), ((8, "u8", "u8", None), "states"),
     ((8, "u8", "int8", 0), "draws"), ((8, "u8", "int8", 300), "draws"), ((True, "u8", "int8", None), "k")],
)  # fmt: skip
def test_forms_that_mean_nothing_are_refused(settings, where):
    with pytest.raises(RecipeError) as caught:
        check_form(*settings)
    assert caught.value.where == where
