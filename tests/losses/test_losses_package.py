"""The public face of the folder: names, laziness, doc examples."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import potstill.losses
import potstill.losses.fused

CLASSES = {
    "AttentionProjection",
    "ClassMeanAccumulator",
    "Correction",
    "DDKTerms",
    "GatedTokens",
    "LELPBasis",
    "LELPStatistics",
    "LazyLogits",
    "MIAlphaLoss",
    "MinillmReturns",
    "OutputDiscriminator",
    "QuantileNet",
    "SpecialToken",
    "Term",
    "TopK",
}
MODULES = sorted(module.name for module in pkgutil.iter_modules(potstill.losses.__path__) if not module.ispkg)
FUSED = sorted(f"fused.{module.name}" for module in pkgutil.iter_modules(potstill.losses.fused.__path__))


def test_all_is_sorted_complete_and_loads():
    names = potstill.losses.__all__
    assert names == sorted(names)
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(potstill.losses, name).__name__ == name
    public = {
        name
        for module in [*MODULES, "fused.terms", "fused.words"]
        if not module.startswith("_")
        for name, item in vars(importlib.import_module(f"potstill.losses.{module}")).items()
        if inspect.isfunction(item) and item.__module__.endswith(f".{module}") and not name.startswith("_")
    }
    assert public == set(names) - CLASSES


def test_no_file_hides_a_function_of_the_same_name():
    assert not set(MODULES) & set(potstill.losses.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="kd_lk"):
        potstill.losses.kd_lk  # noqa: B018


def test_importing_the_package_does_not_import_torch():
    code = "import sys, potstill.losses; assert 'kd_kl' in dir(potstill.losses); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [*MODULES, *FUSED])
def test_doc_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"potstill.losses.{name}"))
    assert result.failed == 0
    assert result.attempted > 0 or name.rpartition(".")[2].startswith("_")


@pytest.mark.parametrize("name", [name for name in potstill.losses.__all__ if name not in CLASSES])
def test_every_function_documents_arguments_units_errors_and_source(name):
    item = getattr(potstill.losses, name)
    for section in ("Args:", "Returns:", "Raises:", "Source:", "Example:"):
        assert section in item.__doc__, section
    for parameter in inspect.signature(item).parameters:
        assert f"    {parameter}: " in item.__doc__, parameter
