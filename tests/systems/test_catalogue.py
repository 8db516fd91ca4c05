from importlib import import_module
from pathlib import Path

import pytest

from potstill.recipe import packaged_recipes
from potstill.systems.catalogue import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("system", CATALOGUE, ids=lambda system: system.name)
def test_what_a_row_names_is_there(system):
    for name in system.api:
        package, _, attribute = name.rpartition(".")
        assert attribute in import_module(package).__all__
    assert system.recipe is None or system.recipe in packaged_recipes()
    assert system.evidence is None or (ROOT / system.evidence).is_file()


def test_no_name_comes_twice():
    assert len({system.name for system in CATALOGUE}) == len(CATALOGUE)
