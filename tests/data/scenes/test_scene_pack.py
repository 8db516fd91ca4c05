import json
import shutil

import numpy as np
import pytest

from potstill.data.scenes.pack import PACK_FOLDER, ScenePack, load_pack
from potstill.errors import InputError, IntegrityError


@pytest.fixture
def copied_pack(tmp_path):
    folder = tmp_path / "pack"
    shutil.copytree(PACK_FOLDER, folder)
    return folder


def test_every_shipped_file_has_the_hash_the_manifest_names():
    pack = ScenePack()
    for name in pack.vendor_names:
        assert pack.vendor(name).tiles.shape == (len(pack.concepts), 64, 64, 4)


def test_only_permissive_art_is_shipped():
    pack = load_pack()
    licences = {name: pack.vendor(name).licence for name in pack.vendor_names}
    assert licences == {"noto": "Apache-2.0", "twemoji": "CC-BY-4.0", "fluent-flat": "MIT"}


def test_no_drawing_is_blank():
    pack = load_pack()
    for name in pack.vendor_names:
        covered = (pack.vendor(name).tiles[..., 3] > 128).mean(axis=(1, 2))
        assert covered.min() > 0.02, pack.concepts[int(covered.argmin())].name


def test_names_are_there_in_every_language_and_unique_in_english():
    concepts = load_pack().concepts
    assert len({c.name for c in concepts}) == len(concepts)
    assert all(c.names[code].strip() for c in concepts for code in ("en", "de", "fr", "es", "zh"))
    assert not any(mark in name for c in concepts for name in c.names.values() for mark in "’“”,?")


def test_english_is_cleaned_up():
    by_name = {c.name: c for c in load_pack().concepts}
    assert by_name["popcorn"].with_article == "popcorn"
    assert by_name["grapes"].with_article == "grapes"
    assert by_name["apple"].with_article == "an apple"
    assert by_name["unicorn"].with_article == "a unicorn"
    assert by_name["mouse"].plural == "mice"
    assert by_name["popcorn"].plural is None


def test_the_first_concepts_are_short_countable_and_of_many_kinds():
    first = load_pack().concepts[:96]
    assert all(len(c.name.split()) <= 2 and c.noun == "count" for c in first)
    assert {c.group for c in first[:12]} >= {"animals-nature", "food-drink", "travel-places", "activities", "objects"}


def test_a_damaged_atlas_is_refused_by_name(copied_pack):
    atlas = copied_pack / "twemoji.png"
    data = bytearray(atlas.read_bytes())
    data[len(data) // 2] ^= 1
    atlas.write_bytes(data)
    pack = ScenePack(folder=copied_pack)
    pack.vendor("noto")
    with pytest.raises(IntegrityError, match=r"twemoji\.png"):
        pack.vendor("twemoji")


def test_a_missing_atlas_is_refused_by_name(copied_pack):
    (copied_pack / "noto.png").unlink()
    with pytest.raises(IntegrityError, match=r"noto\.png"):
        ScenePack(folder=copied_pack).vendor("noto")


def test_changed_names_are_refused(copied_pack):
    path = copied_pack / "concepts.json"
    path.write_text(path.read_text().replace("panda", "bear", 1))
    with pytest.raises(IntegrityError, match=r"concepts\.json"):
        ScenePack(folder=copied_pack)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}'])
def test_a_broken_manifest_is_refused(copied_pack, text):
    (copied_pack / "pack.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"pack\.json|version"):
        ScenePack(folder=copied_pack)


def test_an_unknown_vendor_names_the_nearest():
    with pytest.raises(InputError, match="twemoji"):
        load_pack().vendor("twemojis")


def test_openmoji_without_its_folder_says_how_to_get_it():
    with pytest.raises(InputError, match="--vendor openmoji"):
        load_pack().vendor("openmoji")


def _as_extra(folder, concepts_hash=None):
    """Turn a copy of the shipped pack into what the build script writes for an extra vendor."""
    manifest = json.loads((folder / "pack.json").read_text())
    manifest["vendors"] = {"mine": manifest["vendors"]["noto"]}
    manifest["hexes_sha256"] = concepts_hash or manifest["hexes_sha256"]
    (folder / "pack.json").write_text(json.dumps(manifest))


def test_an_extra_folder_adds_its_vendor(copied_pack):
    _as_extra(copied_pack)
    pack = ScenePack([copied_pack])
    assert "mine" in pack.vendor_names
    np.testing.assert_array_equal(pack.vendor("mine").tiles, pack.vendor("noto").tiles)


def test_an_extra_folder_for_another_list_of_concepts_is_refused(copied_pack):
    _as_extra(copied_pack, "0" * 64)
    with pytest.raises(IntegrityError, match="another list"):
        ScenePack([copied_pack])
