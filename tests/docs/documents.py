"""Finds the documents of the repository and takes them apart: fenced blocks, links, headings."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], key=lambda path: path.relative_to(ROOT).as_posix()
)
NOT_RUN = "# not run: "
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the document it starts on."""

    language: str
    text: str
    line: int


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path, language):
    text = path.read_text(encoding="utf-8")
    found = [Block(m[1], m[2], text[: m.start(2)].count("\n") + 1) for m in _FENCE.finditer(text)]
    return [block for block in found if block.language == language]


def having(language):
    """The documents that hold blocks of a language."""
    return [path for path in DOCUMENTS if blocks(path, language)]


def prose(path):
    """The text of a document without its fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", path.read_text(encoding="utf-8")))


def links(path):
    return re.findall(r"\]\(([^)\s]+)\)", prose(path))


def anchors(path):
    """The fragments that headings of a document can be linked by."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", plain))
    return found
