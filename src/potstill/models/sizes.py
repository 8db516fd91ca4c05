"""Sizes in a configuration that no model has: refused before anybody tries to build that many layers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

# Each of these makes that many Python objects, whatever the width: minutes, and all memory, without a tensor.
_LIMITS = ((re.compile(r"(layers?|depths?|blocks?|experts)$"), 10_000), (re.compile(r"num_labels$"), 1 << 24))


def absurd_size(config: Mapping[str, Any]) -> tuple[str, Any, int] | None:
    """Return (path of the field, its value, the most that is accepted) for the first size beyond reason, or None."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            if found := absurd_size(value):
                return f"{key}.{found[0]}", *found[1:]
            continue
        limit = next((limit for pattern, limit in _LIMITS if pattern.search(str(key))), None)
        for number in value if isinstance(value, list | tuple) else (value,):
            if limit is not None and isinstance(number, int | float) and number > limit:
                return str(key), number, limit
    return None


def memory_bytes() -> int | None:
    """Return the memory of this machine, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
