"""Real digits: the shipped pack, its parts and what junk is made of."""

import json
import shutil

import numpy as np
import pytest
import torch

from potstill.data.digits import DigitDataset
from potstill.data.digits.pack import PACK_FOLDER, load_digits
from potstill.data.digits_source import build_digits
from potstill.data.pictures import PictureOptions
from potstill.errors import InputError, IntegrityError

PLAIN = PictureOptions(augment="none")


def test_the_pack_holds_ten_thousand_different_digits_of_every_kind():
    pictures, digits = load_digits()
    assert pictures.shape == (10_000, 28, 28)
    assert len(np.unique(pictures.reshape(10_000, -1), axis=0)) == 10_000
    assert np.bincount(digits).min() > 800
    assert (PACK_FOLDER / "digits.png").stat().st_size < 2.5e6


def test_a_damaged_pack_is_refused(tmp_path):
    shutil.copytree(PACK_FOLDER, tmp_path / "pack")
    data = bytearray((PACK_FOLDER / "digits.png").read_bytes())
    data[5000] ^= 1
    (tmp_path / "pack" / "digits.png").write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged"):
        load_digits(tmp_path / "pack")
    (tmp_path / "pack" / "pack.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(IntegrityError, match="cannot be read"):
        load_digits(tmp_path / "pack")


def test_the_pictures_are_the_digits_as_they_were_written():
    data = DigitDataset("test", options=PLAIN)
    shown = torch.stack([sample["image"][0, 0] for sample in data.__getitems__(range(30))])
    every = torch.from_numpy(load_digits()[0].copy()).float() / 255
    for picture, sample in zip((shown + 1) / 2, data.__getitems__(range(30))):
        distance = (every - picture).abs().amax((1, 2))
        assert distance.min() < 1e-3
        assert load_digits()[1][int(distance.argmin())] == sample["label"]


def test_the_parts_share_no_digit_and_hold_all():
    drawn = [DigitDataset(split)._drawings[:, 0].reshape(-1, 784) for split in ("train", "validation", "test")]
    assert [len(rows) for rows in drawn] == [7000, 1000, 2000]
    assert len(torch.cat(drawn).unique(dim=0)) == 10_000


def test_a_smaller_pool_depends_on_the_seed():
    one, same, other = (DigitDataset("train", seed=seed, options=PictureOptions(pool=50)) for seed in (0, 0, 1))
    assert torch.equal(one._drawings, same._drawings)
    assert not torch.equal(one._drawings, other._drawings)
    with pytest.raises(InputError, match="7000 digits"):
        build_digits(pool=7001)


def test_the_binary_target_is_even_or_odd():
    data, plain = DigitDataset("test", target="binary"), DigitDataset("test")
    assert data.classes == ["even", "odd"]
    pairs = zip(data.__getitems__(range(100)), plain.__getitems__(range(100)))
    assert all(one["label"] == other["label"] % 2 for one, other in pairs)


def test_the_held_out_style_shows_the_test_digits_in_odd_styles():
    source = build_digits()
    odd, test = (source.split(split).__getitems__(range(200)) for split in ("heldout_style", "test"))
    assert [s["label"] for s in odd] == [s["label"] for s in test]
    assert not any(torch.equal(one["image"], other["image"]) for one, other in zip(odd, test))


def test_junk_is_four_quarters_each_in_the_wrong_corner():
    data = DigitDataset("train", options=PictureOptions(augment="none", junk=0.5, pool=40))
    junk = data._scrambled(np.array([[3, 4, 5, 6]]))[0, 0]
    ink = data._drawings[:, 0]
    corners = [junk[:14, :14], junk[:14, 14:], junk[14:, :14], junk[14:, 14:]]
    wanted = [ink[3, 14:, 14:], ink[4, 14:, :14], ink[5, :14, 14:], ink[6, :14, :14]]
    assert all(torch.equal(one, other) for one, other in zip(corners, wanted))
