"""``potstill cache`` as a user sees it."""

import json

import pytest

SETS = ("--set", "data.augment=none", "--set", "data.pool=70", "--set", "train.threads=1")


@pytest.fixture
def built(potstill, tmp_path):
    got = potstill("cache", "build", "kd-digits", "--out", tmp_path / "cache", *SETS)
    assert got.code == 0, got.err
    return tmp_path / "cache", got


def test_build_says_what_is_kept_and_where(built):
    folder, got = built
    assert "logits: all of 10 as fp32, 40 bytes a sample" in got.out
    assert f"Cache: {folder}" in got.out
    assert (folder / "manifest.json").is_file()


def test_info_names_teacher_fields_and_bytes(potstill, built):
    got = potstill("cache", "info", built[0])
    assert got.code == 0
    assert "ResNetForImageClassification (digits-cnn), fp32" in got.out
    assert "samples: 70 in 2 files" in got.out or "samples: 70 in 1 files" in got.out
    found = json.loads(potstill("cache", "info", built[0], "--json").out)
    assert found["rows"] == 70
    assert found["fields"][0]["bytes_per_position"] == 40


def test_verify_finds_what_info_does_not_look_at(potstill, built):
    assert "every bit as it was written" in potstill("cache", "verify", built[0]).out
    (path,) = built[0].glob("rows-000000.safetensors")
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(data)
    got = potstill("cache", "verify", built[0])
    assert got.code == 2
    assert "rows-000000.safetensors: this file of the cache is damaged" in got.err
    assert "1 of " in got.err


def test_a_build_that_is_repeated_does_nothing_and_says_where_it_is(potstill, built):
    before = {p.name: p.stat().st_mtime_ns for p in built[0].glob("*.safetensors")}
    assert potstill("cache", "build", "kd-digits", "--out", built[0], *SETS).code == 0
    assert {p.name: p.stat().st_mtime_ns for p in built[0].glob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "kd-digits", "--out", "here"), "data: the training samples change from epoch to epoch"),
        (("build", "kd-digits", "--out", "here", "--log-probs", "fp8", *SETS), "log_probs: unknown form"),
        (("build", "kd-digits", "--out", "here", "--temperatures", "hot", *SETS), "--temperatures: no list of numbers"),
        (("build", "kd-digits", "--out", "here", "--fields", "logit", *SETS), 'the model returned no "logit"'),
        (("build", "kd-digits", *SETS), "teacher.cache: is missing"),
        (("verify", "nowhere"), "there is no cache"),
        (("info", "nowhere"), "there is no cache"),
    ],
)
def test_mistakes_end_with_one_message(potstill, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    got = potstill("cache", *arguments)
    assert got.code == 2
    assert message in got.err
    assert len(got.err.strip().splitlines()) == 1
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("command", ["build", "verify", "info"])
def test_every_command_has_help(potstill, command):
    assert "Usage:" in potstill("cache", command, "--help").out
