"""The drawings and names the scenes are made of: loading, and checking that they are the ones that were shipped."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from potstill.errors import InputError, IntegrityError, suggest

PACK_FOLDER = Path(__file__).parent / "pack"
REBUILD = "Reinstall potstill, or rebuild the pack with tools/build_scene_pack.py."


@dataclass(frozen=True, slots=True)
class Concept:
    """One thing that can stand in a scene.

    Attributes:
        number: Place in the fixed order; the label of the thing in a concept map.
        hex: Unicode code points, hexadecimal, joined by "-".
        names: Its name by language code.
        plural: English plural; None where English does not count it.
        noun: "count" (a dog, two dogs), "mass" (popcorn) or "plural" (grapes).
        article: "a", "an", or "" for mass and plural nouns.
        group: CLDR group, e.g. "animals-nature".
        subgroup: CLDR subgroup, e.g. "animal-bird".
        category: Everyday word for the subgroup (singular, plural), or None.
        keywords: CLDR keywords by language code.
    """

    number: int
    hex: str
    names: dict[str, str]
    plural: str | None
    noun: str
    article: str
    group: str
    subgroup: str
    category: tuple[str, str] | None
    keywords: dict[str, list[str]]

    @property
    def name(self) -> str:
        """The English name."""
        return self.names["en"]

    @property
    def with_article(self) -> str:
        """The English name as it stands in a sentence: "a dog", "an apple", "popcorn"."""
        return f"{self.article} {self.names['en']}" if self.article else self.names["en"]


@dataclass(frozen=True)
class Vendor:
    """The drawings of one vendor.

    Attributes:
        name: E.g. "noto".
        tiles: uint8 RGBA ``[concepts, pixels, pixels, 4]``.
        colours: Dominant colour of each drawing, None where there is none.
        licence: Licence of the drawings.
        attribution: Whom to name.
    """

    name: str
    tiles: np.ndarray
    colours: tuple[str | None, ...]
    licence: str
    attribution: str


class ScenePack:
    """Concepts and vendors, read from a pack folder and any number of extra ones.

    Files are read when first needed and checked against the sha256 in the folder's ``pack.json``.

    Args:
        extra_folders: Folders made by ``tools/build_scene_pack.py --vendor NAME --out FOLDER``.
        folder: The main pack; by default the one inside the package.

    Raises:
        IntegrityError: if a file is missing or is not the one that ``pack.json`` describes.
    """

    def __init__(self, extra_folders: Sequence[str | Path] = (), folder: str | Path = PACK_FOLDER):
        self.folder = Path(folder)
        self._manifests = {self.folder: _read_manifest(self.folder)}
        main = self._manifests[self.folder]
        for extra in map(Path, extra_folders):
            self._manifests[extra] = _read_manifest(extra)
            if self._manifests[extra].get("hexes_sha256") != main["hexes_sha256"]:
                raise IntegrityError(
                    "this vendor was built for another list of concepts",
                    where=str(extra),
                    hint="Build it again with the tools/build_scene_pack.py of this version.",
                )
        self._homes = {name: at for at, manifest in self._manifests.items() for name in manifest["vendors"]}
        self.concepts = _read_concepts(self.folder, main)
        self._vendors: dict[str, Vendor] = {}

    @property
    def vendor_names(self) -> list[str]:
        """Names of all vendors that can be asked for."""
        return list(self._homes)

    def vendor(self, name: str) -> Vendor:
        """Return the drawings of one vendor, reading and checking its atlas on first use."""
        if name not in self._homes:
            hint = suggest(str(name), self._homes)
            if name == "openmoji":
                hint = "Build it with tools/build_scene_pack.py --vendor openmoji --out DIR and pass extra_packs=[DIR]."
            raise InputError(f'unknown vendor "{name}"', where="vendors", hint=hint)
        if name not in self._vendors:
            at = self._homes[name]
            manifest = self._manifests[at]
            about = manifest["vendors"][name]
            data = _read_checked(at, about["atlas"], manifest)
            atlas = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
            pixels, columns, count = manifest["pixels"], manifest["columns"], manifest["concepts"]
            rows = atlas.shape[0] // pixels
            tiles = atlas.reshape(rows, pixels, columns, pixels, 4).swapaxes(1, 2).reshape(-1, pixels, pixels, 4)
            self._vendors[name] = Vendor(
                name, tiles[:count], tuple(about["colours"]), about["licence"], about["attribution"]
            )
        return self._vendors[name]


@lru_cache(maxsize=4)
def load_pack(extra_folders: tuple[str, ...] = ()) -> ScenePack:
    """Return the shipped pack, with the extra folders; the same object for the same folders."""
    return ScenePack(extra_folders)


def _read_manifest(folder: Path) -> dict:
    path = folder / "pack.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["version"]
    except FileNotFoundError:
        raise IntegrityError("no pack.json here", where=str(folder), hint=REBUILD) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError("pack.json cannot be read", where=str(path), got=str(error), hint=REBUILD) from error
    if version != 1:
        raise IntegrityError("unknown pack version", where=str(path), expected="1", got=version, hint=REBUILD)
    return manifest


def _read_checked(folder: Path, name: str, manifest: dict) -> bytes:
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError:
        raise IntegrityError("file of the scene pack is missing", where=str(path), hint=REBUILD) from None
    got = hashlib.sha256(data).hexdigest()
    if got != manifest["sha256"][name]:
        raise IntegrityError(
            "file of the scene pack is damaged",
            where=str(path),
            expected=f"sha256 {manifest['sha256'][name][:16]}…",
            got=f"{got[:16]}…",
            hint=REBUILD,
        )
    return data


def _read_concepts(folder: Path, manifest: dict) -> tuple[Concept, ...]:
    records = json.loads(_read_checked(folder, "concepts.json", manifest))
    return tuple(
        Concept(
            number=number,
            hex=r["hex"],
            names=r["names"],
            plural=r["plural"],
            noun=r["noun"],
            article=r["article"],
            group=r["group"],
            subgroup=r["subgroup"],
            category=tuple(r["category"]) if r["category"] else None,
            keywords=r["keywords"],
        )
        for number, r in enumerate(records)
    )
