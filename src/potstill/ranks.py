"""Which of several processes this one is, as torchrun and accelerate say it: without importing torch."""

from __future__ import annotations

import os


def process_rank() -> int:
    """Return the number of this process over all nodes; 0 if it is the only one."""
    return int(os.environ.get("RANK", 0))
