"""Will a model fit into memory? Asked of its files, before they are read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from potstill.errors import RecipeError

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def weights_bytes(files: Sequence[Path], dtype: torch.dtype = torch.float32) -> int:
    """Return how much memory the weights in some files take, once loaded.

    Args:
        files: safetensors, of which only the heads are read; of other files the size is taken.
        dtype: What floating-point weights are loaded as.
    """
    total = 0
    for path in files:
        if path.suffix != ".safetensors":
            total += path.stat().st_size
            continue
        with open(path, "rb") as file:
            head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, row in head.items():
            if name == "__metadata__":
                continue
            start, stop = row["data_offsets"]
            total += math.prod(row["shape"]) * dtype.itemsize if row["dtype"] in _FLOATS else stop - start
    return total


def free_memory() -> int | None:
    """Return the bytes that can still be taken on this machine, within the limits of a container; None = unknown."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        try:  # macOS; what is in use is not counted
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        except (OSError, ValueError):
            return None
    for limit, used in _LIMITS:
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no container, or one without a limit ("max")
            continue
    return min(found) if found else None


def refuse_too_large(files: Sequence[Path], dtype: torch.dtype, where: str, hint: str | None = None) -> None:
    """Refuse weights that need more memory than there is: the system would kill the process without a word.

    Args:
        files: Of the weights.
        dtype: What they are loaded as.
        where: Recipe path, for the message.
        hint: The next step, in place of the usual one.

    Raises:
        RecipeError: says how much is needed and how much there is.
    """
    needed, free = weights_bytes(files, dtype), free_memory()
    if free is None or needed <= free:
        return
    raise RecipeError(
        "the model is larger than the memory of this machine",
        where=where,
        expected=f"at most {free / 1e9:.1f} GB, which are free",
        got=f"{needed / 1e9:.1f} GB of weights as {str(dtype).removeprefix('torch.')}",
        hint=hint
        or "Load it as bf16 (dtype), or build a cache of it on a larger machine (potstill cache build) and name that "
        "here: teacher.cache.",
    )
