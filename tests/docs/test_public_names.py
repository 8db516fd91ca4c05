"""The public face of the package: names, order, laziness, and that the API page lists them."""

import inspect
import subprocess
import sys

import pytest
from documents import ROOT

import potstill


def test_all_is_sorted_and_without_repeats():
    names = [name for name in potstill.__all__ if not name.startswith("__")]
    assert names == sorted(names)
    assert len(set(potstill.__all__)) == len(potstill.__all__)
    assert dir(potstill) == sorted(potstill.__all__)


@pytest.mark.parametrize("name", potstill.__all__)
def test_every_public_name_can_be_imported_and_is_documented(name):
    import potstill.evaluate
    import potstill.report  # a package of the same name would hide a function once it is imported

    item = getattr(potstill, name)
    assert not inspect.ismodule(item)
    assert isinstance(item, str) or item.__doc__
    page = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    assert f"`potstill.{name}" in page


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="distil"):
        potstill.distil  # noqa: B018


def test_importing_potstill_does_not_import_torch():
    code = "import sys, potstill; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
