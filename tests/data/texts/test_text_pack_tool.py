"""What tools/build_text_pack.py makes of docstrings, quiz patterns and control files; it fetches nothing here."""

import importlib.util
import json
from pathlib import Path

import pytest

from potstill.data.texts import PACK, TextDataset

TOOL = Path(__file__).resolve().parents[3] / "tools" / "build_text_pack.py"


@pytest.fixture(scope="module")
def tool():
    if not TOOL.is_file():
        pytest.skip("the tests run outside the checkout")
    spec = importlib.util.spec_from_file_location("build_text_pack", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_running_text_of_a_docstring_is_kept(tool):
    docstring = """Sum of it.

    All of :func:`~.numbers` are
    added [1]_, see :ref:`Guide <guide>`.

    .. versionadded:: 2

    Parameters
    ----------
    x : array

    Not this.

    Notes
    -----
    It ends with ``0``.

    >>> f(1)
    """
    assert tool.prose(docstring) == (
        "Sum of it.",
        "All of numbers are added, see Guide.\n\nIt ends with `0`.",
    )


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{G{eorge} }Washington", "George Washington"),
        ("cat|fox", "cat"),
        ("{I }[drive|force]", "I drive"),
        ("Porto-Novo", "Porto-Novo"),
    ],
)
def test_the_fullest_reading_of_a_quiz_pattern_is_taken(tool, pattern, said):
    assert tool.spelled(pattern) == said


def test_the_entries_of_a_control_file_keep_their_lines(tool):
    text = "Package: a\nDescription-en: short\n long\n .\n more\n\nPackage: b\n"
    assert list(tool.paragraphs(text)) == [
        {"Package": "a", "Description-en": "short\n long\n .\n more"},
        {"Package": "b"},
    ]


def test_a_pack_that_it_writes_is_read_and_holds_no_text_twice(tool, tmp_path):
    from potstill.data.texts import read_pack

    rows = [(f"d{i}", f"Say {i % 9}", f"text {i % 7}") for i in range(40)]
    tool.write(tmp_path / "pack", {"own": rows}, {"own": "here"}, "a test")
    read = read_pack(tmp_path / "pack")
    texts = [row["text"] for row in read.rows["own"]]
    assert len(texts) == len(set(texts)) == 7
    assert (
        len(TextDataset("train", pack=read))
        == json.loads((tmp_path / "pack" / "pack.json").read_text())["domains"][0]["samples"]["train"]
    )


def test_the_shipped_pack_says_the_hashes_that_are_pinned(tool):
    """A package of another version would be told by its name."""
    sources = " ".join(entry["source"] for entry in json.loads((PACK / "pack.json").read_text())["domains"])
    assert all(package in sources for package in tool.PYTHON_PACKAGES)
