"""``constraints.txt`` pins all that ``make`` installs, packages of packages too."""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
# A CUDA build of torch asks for exactly the libraries that it was made with.
OF_TORCH = ("nvidia-", "cuda-", "triton")


@pytest.fixture(scope="module")
def pins():
    path = ROOT / "constraints.txt"
    if not path.is_file():
        pytest.skip("the tests run outside the checkout")
    found = [Requirement(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {canonicalize_name(r.name): r.specifier for r in found}


@pytest.fixture(scope="module")
def installed():
    """Name and version of all that is installed here because of ``potstill[dev]`` and the build backend."""
    tomllib = pytest.importorskip("tomllib", reason="new in Python 3.11")
    file = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = file["project"]["optional-dependencies"]
    asked = [Requirement(text) for text in file["project"]["dependencies"] + file["build-system"]["requires"]]
    asked.append(Requirement("editables"))  # what hatchling asks for when it installs a checkout
    asked += [Requirement(t) for extra in Requirement(extras["dev"][0]).extras for t in extras[extra]]
    found, seen = {}, set()
    while asked:
        requirement = asked.pop()
        name = canonicalize_name(requirement.name)
        key = (name, *sorted(requirement.extras))
        if key in seen or name.startswith(OF_TORCH):
            continue
        seen.add(key)
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = package.version
        for text in package.requires or ():
            more = Requirement(text)
            if more.marker is None or any(more.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
                asked.append(more)
    return found


def test_every_package_that_is_installed_for_us_is_pinned(pins, installed):
    assert len(installed) > 50
    assert sorted(set(installed) - set(pins)) == []


def test_what_is_installed_is_what_is_pinned(pins, installed):
    other = {n: v for n, v in installed.items() if n in pins and not pins[n].contains(v, prereleases=True)}
    if other and Path(sys.prefix) != ROOT / ".venv":
        pytest.skip(f"this environment is not the one that make sets up: {other}")
    assert other == {}


def test_every_pin_is_exact(pins):
    for name, specifier in pins.items():
        assert re.fullmatch(r"==[^*,]+", str(specifier)), name
