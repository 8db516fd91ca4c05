"""Rebuild the scene pack from the registry packages it is made of.

    python tools/build_scene_pack.py                                 # rewrites src/potstill/data/scenes/pack
    python tools/build_scene_pack.py --check                         # compares a rebuild with what is committed
    python tools/build_scene_pack.py --vendor openmoji --out DIR     # an extra style, for your own use

Needs ``npm`` and the extra ``potstill[pack]`` (resvg-py). Every archive is checked against the sha256 pinned below.
OpenMoji is CC-BY-SA-4.0: it is never part of Potstill, only of the folder you build for yourself.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scene_pack_words import (
    ARTICLES,
    DROP,
    EXTRA,
    FACE_OF,
    FIRST,
    IRREGULAR_PLURALS,
    LAST,
    MASS,
    NO_CATEGORY,
    PLURAL,
    RENAME,
    SUBGROUPS,
)

PIXELS = 64
COLUMNS = 32
MOST_WORDS = 4  # then a caption of four things has at most 31 tokens
LANGUAGES = ("en", "de", "fr", "es", "zh")
PACK = Path(__file__).resolve().parent.parent / "src" / "potstill" / "data" / "scenes" / "pack"

TEXT = ("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")
VENDORS = {
    "noto": {
        "package": "@iconify-json/noto",
        "version": "1.2.9",
        "sha256": "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "licence": "Apache-2.0",
        "attribution": "Noto Emoji, Copyright Google LLC",
    },
    "twemoji": {
        "package": "@iconify-json/twemoji",
        "version": "1.2.5",
        "sha256": "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "licence": "CC-BY-4.0",
        "attribution": "Twemoji, Copyright Twitter, Inc, jdecked and other contributors",
    },
    "fluent-flat": {
        "package": "@iconify-json/fluent-emoji-flat",
        "version": "1.2.6",
        "sha256": "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "licence": "MIT",
        "attribution": "Fluent Emoji, Copyright Microsoft Corporation",
    },
    "openmoji": {
        "package": "@iconify-json/openmoji",
        "version": "1.2.29",
        "sha256": "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "licence": "CC-BY-SA-4.0",
        "attribution": "OpenMoji, the open-source emoji and icon project",
    },
}
SHIPPED = ("noto", "twemoji", "fluent-flat")


def fetch(package: str, version: str, sha256: str, folder: Path) -> tarfile.TarFile:
    """Download one npm archive into ``folder`` (unless it is there) and refuse it if its hash is another."""
    path = folder / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True, capture_output=True)
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != sha256:
        sys.exit(f"{path.name}: sha256 is {got}, pinned is {sha256}. Delete it and try again.")
    return tarfile.open(path)


def member(archive: tarfile.TarFile, name: str):
    return json.load(archive.extractfile(f"package/{name}"))


def plain(hexcode: str) -> str:
    """Lower case, without the variation selector that packages write or leave out at will."""
    return hexcode.lower().replace("-fe0f", "")


def clean(text: str) -> str:
    return text.replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"').strip()


class Art:
    """The drawings of one vendor."""

    def __init__(self, archive: tarfile.TarFile):
        self.icons = member(archive, "icons.json")
        self.names = {plain(h): n for h, n in member(archive, "chars.json").items() if n in self.icons["icons"]}

    def draw(self, hexcode: str) -> Image.Image:
        """Return the RGBA drawing, fitted into a square of ``PIXELS`` and centred."""
        import resvg_py

        icon = self.icons["icons"][self.names[hexcode]]
        width, height = icon.get("width", self.icons["width"]), icon.get("height", self.icons["height"])
        side = max(width, height)
        left = icon.get("left", 0) - (side - width) / 2
        top = icon.get("top", 0) - (side - height) / 2
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {side} {side}">{icon["body"]}</svg>'
        )
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=PIXELS, height=PIXELS))
        pixels = np.array(Image.open(io.BytesIO(png)).convert("RGBA"))
        # Six bits a channel halve the file and are not seen at scene sizes; clear pixels carry no colour.
        pixels = np.minimum(np.round(pixels / 4.0) * 4.0, 255).astype(np.uint8)
        pixels[pixels[..., 3] >= 250, 3] = 255
        pixels[pixels[..., 3] < 4] = 0
        return Image.fromarray(pixels)


# Colours a person would call by these names, several for each: a pixel gets the name of the nearest one in CIELAB.
ANCHORS = {
    "red": "e02020 c01828 dd2e44 f44336 b71c1c f03a4a 9e1a1a f8312f ff4a3d d32f2f e8384f be1931 a0041e",
    "orange": "ff8c00 f4900c ff6d00 f57c00 ff9800 ff7a1a fb8c00 ffa04d ef6c00 e65100 f9a01b",
    "yellow": "ffd600 ffcc4d ffe066 fdd835 fff176 ffee58 fcc21b ffd54f f9c23c ffb02e fcea2b ffe8a0 fbc02d",
    "green": "2e7d32 4caf50 77b255 8bc34a a6d388 00a878 5c913b 3e721d 1b5e20 c5e1a5 689f38 86d72f 44911b 008463 afb42b",
    "blue": "1565c0 2196f3 55acee 88c9f9 3b88c3 226699 0288d1 4fc3f7 0d47a1 00a6ed 5ba4e6 303f9f 29b6f6 006064 00bcd4",
    "purple": "7b1fa2 9c27b0 aa8ed6 744eaa 8e24aa 6a1b9a 9266cc ab47bc ba8ddf 533566 8767a8 7e57c2 433b6b 6d4a8c",
    "pink": "f06292 f48fb1 ea596e f4abba ff8fb8 ec407a ffb6c9 e91e8c ff80ab f8bbd0 ea4aaa e75a9a",
    "brown": "795548 8d6e63 a0522d 5d4037 662113 c1694f 8a4b38 bf6952 a56953 6d4534 b97b4a 4e342e 3e2723 865b3a "
    "b55e19 6f3b20",
    "white": "ffffff f5f5f5 fafafa f0f4f8 eceff1 e6e7e8 f4f4f4",
    "grey": "9e9e9e bdbdbd 99aab5 757575 90a4ae ccd6dd 8899a6 616161 636363 cfd8dc 78909c b0bec5 546e7a",
    # People disagree about peach, tan, vermilion, slate and bottle glass: a pixel of these counts for no colour.
    "": "ffc9a0 ffdab9 f7c7a3 ffbca6 d7a86e e0b084 c99a5b f4511e ff5722 f2502c 6f91a5 5c8ba6 78a0b4 dfe9c0 c8b8d8 "
    "e0d0c0",
    "black": "000000 212121 292f33 31373d 1a1a1a 263238 2f2f2f 37474f 424242",
}  # fmt: skip


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB in 0 to 255 ``[N, 3]`` to CIELAB (D65)."""
    linear = rgb / 255.0
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


ANCHOR_NAMES = [name for name, codes in ANCHORS.items() for _ in codes.split()]
ANCHOR_LAB = to_lab(
    np.array([list(bytes.fromhex(c)) for codes in ANCHORS.values() for c in codes.split()], dtype=float)
)


def dominant_colour(drawing: Image.Image) -> str | None:
    """Return the one colour name of more than 55 % of the opaque pixels, or None where a person would hesitate."""
    pixels = np.asarray(drawing).reshape(-1, 4)
    opaque = pixels[pixels[:, 3] > 128][:, :3]
    colours, counts = np.unique(opaque, axis=0, return_counts=True)
    distances = ((to_lab(colours.astype(float))[:, None] - ANCHOR_LAB[None]) ** 2).sum(axis=2)
    share: dict[str, int] = {}
    for nearest, count in zip(distances.argmin(axis=1).tolist(), counts.tolist()):
        name = ANCHOR_NAMES[nearest]
        share[name] = share.get(name, 0) + count
    best = max(sorted(share), key=share.get)
    return best if best and share[best] > 0.55 * len(opaque) else None


def plural_of(name: str) -> str:
    if name in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[name]
    head, _, last = name.rpartition(" ")
    if last.endswith(("s", "x", "z", "ch", "sh")) or last in ("tomato", "potato", "mango", "mosquito", "domino"):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    elif last.endswith("man"):
        last = last[:-3] + "men"
    else:
        last += "s"
    return f"{head} {last}".strip()


def choose_concepts(text: tarfile.TarFile, common: set[str]) -> list[dict]:
    """Return the concept records in their fixed order; an index into this list is the concept's number."""
    tables = {code: {plain(e["hexcode"]): e for e in member(text, f"{code}/data.json")} for code in LANGUAGES}
    messages = member(text, "en/messages.json")
    group_keys = {g["order"]: g["key"] for g in messages["groups"]}
    subgroup_keys = {g["order"]: g["key"] for g in messages["subgroups"]}
    by_label = {e["label"]: h for h, e in tables["en"].items()}
    unknown = [
        n for n in [*FIRST, *FACE_OF, *FACE_OF.values(), *EXTRA, *RENAME, *LAST, *NO_CATEGORY] if n not in by_label
    ]
    if unknown:
        sys.exit(f"scene_pack_words names emoji that do not exist: {unknown}")

    records, taken = [], set()
    for hexcode, entry in sorted(tables["en"].items(), key=lambda pair: pair[1].get("order", 0)):
        label = entry["label"]
        subgroup = subgroup_keys.get(entry.get("subgroup"))
        if hexcode not in common or (subgroup not in SUBGROUPS and label not in EXTRA) or label in DROP:
            continue
        if "o’clock" in label or "-thirty" in label:
            continue
        worded = by_label[FACE_OF[label]] if label in FACE_OF else hexcode
        names = {code: clean(table[worded]["label"]) for code, table in tables.items()}
        names["en"] = RENAME.get(label, names["en"]).lower()
        if len(names["en"].split()) > MOST_WORDS or names["en"] in taken or not all(names.values()):
            continue
        taken.add(names["en"])
        noun = "mass" if names["en"] in MASS else "plural" if names["en"] in PLURAL else "count"
        article = ARTICLES.get(names["en"], "an" if names["en"][0] in "aeiou" else "a") if noun == "count" else ""
        category = SUBGROUPS.get(subgroup)
        if label in NO_CATEGORY or noun != "count" or category is None:
            category = None
        records.append(
            {
                "hex": hexcode,
                "label": label,
                "names": names,
                "plural": plural_of(names["en"]) if noun == "count" else None,
                "noun": noun,
                "article": article,
                "group": group_keys[entry["group"]],
                "subgroup": subgroup,
                "category": list(category) if category else None,
                "keywords": {
                    code: [clean(t) for t in table[hexcode].get("tags", [])] for code, table in tables.items()
                },
            }
        )
    first = {label: place for place, label in enumerate(FIRST)}
    absent = set(first) - {r["label"] for r in records}
    if absent:
        sys.exit(f"FIRST names emoji that were left out: {sorted(absent)}")
    # After the hand-made list: near twins last, shorter names first, in CLDR order within one length.
    records.sort(key=lambda r: (first.get(r["label"], len(first)), r["label"] in LAST, len(r["names"]["en"].split())))
    return records


def write_vendor(name: str, art: Art, concepts: list[dict], out: Path) -> dict:
    """Write one atlas and return its manifest entry. A concept the vendor lacks is left clear and listed."""
    rows = -(-len(concepts) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * PIXELS, rows * PIXELS))
    colours, missing = [], []
    for place, concept in enumerate(concepts):
        if concept["hex"] not in art.names:
            missing.append(concept["hex"])
            colours.append(None)
            continue
        drawing = art.draw(concept["hex"])
        atlas.paste(drawing, (place % COLUMNS * PIXELS, place // COLUMNS * PIXELS))
        colours.append(dominant_colour(drawing))
    atlas.save(out / f"{name}.png", optimize=True)
    about = VENDORS[name]
    return {
        "atlas": f"{name}.png",
        "source": f"{about['package']}@{about['version']}",
        "source_sha256": about["sha256"],
        "licence": about["licence"],
        "attribution": about["attribution"],
        "changes": f"rasterised to {PIXELS} px, six bits a channel",
        "colours": colours,
        "missing": missing,
    }


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write_concepts(path: Path, concepts: list[dict]) -> None:
    lines = [json.dumps(c, ensure_ascii=False, sort_keys=True) for c in concepts]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def build(vendors: tuple[str, ...], out: Path, downloads: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = fetch(*TEXT, downloads)
    arts = {}
    for name in dict.fromkeys([*SHIPPED, *vendors]):
        about = VENDORS[name]
        arts[name] = Art(fetch(about["package"], about["version"], about["sha256"], downloads))
    common = set.intersection(*(set(arts[name].names) for name in SHIPPED))
    concepts = choose_concepts(text, common)
    manifest = {
        "version": 1,
        "pixels": PIXELS,
        "columns": COLUMNS,
        "concepts": len(concepts),
        "hexes_sha256": hashlib.sha256("\n".join(c["hex"] for c in concepts).encode()).hexdigest(),
        "names": {"source": f"{TEXT[0]}@{TEXT[1]}", "source_sha256": TEXT[2], "licence": "MIT, Unicode-3.0"},
        "vendors": {name: write_vendor(name, arts[name], concepts, out) for name in vendors},
    }
    files = [entry["atlas"] for entry in manifest["vendors"].values()]
    if set(vendors) == set(SHIPPED):
        write_concepts(out / "concepts.json", concepts)
        files.append("concepts.json")
    manifest["sha256"] = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in sorted(files)}
    write_json(out / "pack.json", manifest)
    size = sum((out / name).stat().st_size for name in files) / 1e6
    print(f"{len(concepts)} concepts, {len(vendors)} vendors, {size:.2f} MB in {out}")


def same_content(a: Path, b: Path) -> bool:
    """Pixels for pictures (compressors differ between builds), bytes for text."""
    if a.suffix == ".png":
        return np.array_equal(np.asarray(Image.open(a)), np.asarray(Image.open(b)))
    if a.name == "pack.json":
        one, two = json.loads(a.read_text()), json.loads(b.read_text())
        one.pop("sha256"), two.pop("sha256")
        return one == two
    return a.read_bytes() == b.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vendor", choices=sorted(VENDORS), action="append", help="default: the three shipped ones")
    parser.add_argument("--out", type=Path, default=None, help="default: the pack inside the source tree")
    parser.add_argument("--downloads", type=Path, help="keep the archives here; default: a folder that is deleted")
    parser.add_argument("--check", action="store_true", help="compare with the committed pack, write nothing there")
    options = parser.parse_args()
    vendors = tuple(options.vendor or SHIPPED)
    if options.out is None and set(vendors) - set(SHIPPED):
        parser.error("this vendor is not shipped; name a folder of your own with --out")
    with tempfile.TemporaryDirectory() as scratch:
        downloads = options.downloads or Path(scratch)
        downloads.mkdir(parents=True, exist_ok=True)
        if options.check:
            rebuilt = Path(scratch) / "pack"
            build(vendors, rebuilt, downloads)
            differing = [p.name for p in sorted(rebuilt.iterdir()) if not same_content(p, PACK / p.name)]
            sys.exit(f"differs from the committed pack: {', '.join(differing)}" if differing else 0)
        build(vendors, options.out or PACK, downloads)


if __name__ == "__main__":
    main()
