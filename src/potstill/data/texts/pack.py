"""The shipped texts, or a pack of your own that ``tools/build_text_pack.py`` wrote."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from potstill.errors import InputError, IntegrityError, suggest

PACK = Path(__file__).parent / "pack"


@dataclass(frozen=True)
class TextPack:
    """Texts by domain.

    Attributes:
        domains: Their names.
        rows: Of each domain its rows ``{"prompt", "text", "split"}``, in the order of the file.
    """

    domains: tuple[str, ...]
    rows: Mapping[str, Sequence[Mapping[str, str]]]


@lru_cache(maxsize=4)
def read_pack(folder: Path = PACK) -> TextPack:
    """Return the texts in a folder.

    Raises:
        InputError: There is no pack.
        IntegrityError: A file is damaged, or not the one that ``pack.json`` vouches for.
    """
    path = folder / "pack.json"
    if not path.is_file():
        raise InputError("there is no pack of texts", where="pack", expected="a folder with pack.json", got=str(folder))
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["domains"]
        expected = {entry["name"]: entry["sha256"] for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError("cannot be read as a list of domains", where=str(path)) from error
    return TextPack(tuple(expected), {name: _read(folder / f"{name}.jsonl.gz", expected[name]) for name in expected})


def check_domains(asked: Sequence[str] | None, pack: TextPack) -> tuple[str, ...]:
    """Return the domains to use, in the order asked for; None = all of the pack."""
    if asked is None:
        return pack.domains
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    for name in names:
        if name not in pack.domains:
            raise InputError(f'unknown domain "{name}"', where="domains", hint=suggest(str(name), pack.domains))
    if not names or len(set(names)) < len(names):
        raise InputError("not a choice of domains", where="domains", expected="at least one, none twice", got=names)
    return names


def _read(path: Path, expected: str) -> list[dict[str, str]]:
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise IntegrityError(f"cannot be read ({error})", where=str(path)) from error
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise IntegrityError("is not the expected file", where=str(path), expected=f"SHA-256 {expected}", got=found)
    return [json.loads(line) for line in data.decode("utf-8").splitlines()]
