"""What an installed Potstill needs beside code is in the package, and in the wheel."""

import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

import potstill

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 40 * 1024 * 1024
DATA = {
    "data/scenes/pack": ["pack.json", "concepts.json", "noto.png", "twemoji.png", "fluent-flat.png"],
    "data/scenes/pack/licenses": [
        "cldr-Unicode-3.0.txt",
        "emojibase-MIT.txt",
        "fluent-emoji-MIT.txt",
        "noto-Apache-2.0.txt",
        "twemoji-CC-BY-4.0.txt",
    ],
    "data/texts/pack": [
        "pack.json",
        *(f"{name}.jsonl.gz" for name in ("numerics", "learning", "tables", "graphs", "algebra", "words", "facts")),
    ],
    "data/texts/pack/licenses": [
        *("numpy.txt", "scipy.txt", "scikit-learn.txt", "pandas.txt", "networkx.txt", "sympy.txt"),
        *("wordnet-base.txt", "bsdgames.txt"),
    ],
    "data/digits/pack": ["pack.json", "digits.png"],
    "data/digits/pack/licenses": ["mnist-MIT.txt"],
    "recipes": [
        *("kd-digits.yaml", "kd-emoji.yaml", "kd-emoji-cnn.yaml"),
        *("teach-digits.yaml", "teach-emoji-cnn.yaml", "teach-emoji-vit.yaml"),
        *("kd-blip-vqa.yaml", "kd-scenes.yaml", "optima-scenes.yaml"),
        *("teach-blip-caption.yaml", "teach-blip-vqa.yaml", "teach-scenes.yaml", "teach-vl-t5.yaml"),
    ],
    "report/page": ["compare.html", "head.html", "report.css", "report.html"],
}
NEEDED = [f"{folder}/{name}" for folder, names in DATA.items() for name in names]


@pytest.mark.parametrize("name", NEEDED)
def test_package_data_is_there_and_not_empty(name):
    found = files("potstill").joinpath(name)
    assert found.is_file()
    assert found.read_bytes().strip()


def test_every_packaged_model_is_listed_in_its_manifest():
    from potstill.models.load import packaged_models, verify_manifest

    for folder in packaged_models().values():
        verify_manifest(folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without a network by the build backend itself."""
    pytest.importorskip("hatchling", reason="the build backend is not installed here; make wheel fetches it")
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the tests run outside the checkout")
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=120)
    return next(folder.glob("*.whl"))


def test_the_wheel_is_small_and_holds_the_package_data(wheel):
    assert wheel.stat().st_size <= MOST_BYTES
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"potstill/{name}" for name in NEEDED} <= names
    assert {name for name in names if not name.startswith(("potstill/", "potstill-"))} == set()


def test_the_wheel_holds_every_tracked_file_of_the_package(wheel):
    listed = subprocess.run(["git", "ls-files", "src/potstill"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.removeprefix("src/") for name in listed.stdout.split()} <= names


def test_the_wheel_carries_licence_notice_and_version(wheel):
    archive = zipfile.ZipFile(wheel)
    home = f"potstill-{potstill.__version__}.dist-info"
    texts = {name: archive.read(f"{home}/licenses/{name}").decode() for name in ("LICENSE", "NOTICE")}
    assert "Apache License" in texts["LICENSE"]
    assert "Twemoji" in texts["NOTICE"]
    metadata = archive.read(f"{home}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "potstill = potstill.cli:main" in archive.read(f"{home}/entry_points.txt").decode()


def test_an_unpacked_wheel_works_outside_the_checkout(wheel, tmp_path):
    """Recipes, data and the report's template are read from the archive's files, not from the checkout."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = """
import potstill, sys
from importlib.resources import files
from potstill.data.scenes import SceneDataset
from potstill.recipe import load_recipe, packaged_recipes
assert potstill.__file__.startswith(sys.argv[1]), potstill.__file__
assert len(packaged_recipes()) >= 3
for name in packaged_recipes():
    load_recipe(name)
assert SceneDataset("test")[0]["images"].any()
assert "<html" in files("potstill").joinpath("report/page/head.html").read_text()
"""
    site = str(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", code, site],
        cwd=tmp_path,
        env={"PYTHONPATH": site, "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
