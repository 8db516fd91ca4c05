"""The shipped digits: reading them, and checking that they are the ones that were shipped."""

from __future__ import annotations

import hashlib
import io
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from potstill.errors import IntegrityError

PACK_FOLDER = Path(__file__).parent / "pack"
REBUILD = "Reinstall potstill, or rebuild the pack with tools/build_digit_pack.py."


@lru_cache(maxsize=1)
def load_digits(folder: Path = PACK_FOLDER) -> tuple[np.ndarray, np.ndarray]:
    """Return the pictures, uint8 ``[10000, 28, 28]`` with ink 255, and which digit each is, int64 ``[10000]``.

    Raises:
        IntegrityError: if a file is missing or is not the one that ``pack.json`` describes.
    """
    try:
        manifest = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        data = (folder / "digits.png").read_bytes()
        expected, side, counts = manifest["sha256"]["digits.png"], manifest["pixels"], manifest["counts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError("the digits cannot be read", where=str(folder), got=str(error), hint=REBUILD) from error
    got = hashlib.sha256(data).hexdigest()
    if got != expected:
        raise IntegrityError(
            "the digits are damaged",
            where=str(folder / "digits.png"),
            expected=f"sha256 {expected[:16]}…",
            got=f"{got[:16]}…",
            hint=REBUILD,
        )
    pictures = np.asarray(Image.open(io.BytesIO(data))).reshape(-1, side, side)
    return pictures, np.repeat(np.arange(len(counts)), counts)
