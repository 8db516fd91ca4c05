import doctest
import importlib
import subprocess
import sys

import pytest

import potstill.data.selection


def test_all_is_sorted_and_loads():
    names = potstill.data.selection.__all__
    assert names == sorted(names)
    for name in names:
        item = getattr(potstill.data.selection, name)
        assert name == "SELECTIONS" or item.__name__ == name


def test_every_policy_is_registered_once_the_registry_is_asked_for():
    code = "from potstill.data.selection import SELECTIONS; assert 'active_distill' in SELECTIONS"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="rad_distributions"):
        _ = potstill.data.selection.rad_distributions


def test_importing_the_package_does_not_import_torch():
    code = "import sys, potstill.data.selection as s; assert 'margin_gains' in dir(s); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("file", ["active_distill", "gains", "robust_active"])
def test_the_examples_in_the_docstrings_run(file):
    failed, tried = doctest.testmod(importlib.import_module(f"potstill.data.selection.{file}"))
    assert tried > 0
    assert failed == 0
