"""Data that models write: completions of prompts by a student, a teacher or a mixture of both.

Names are loaded on first use, so importing this package does not import torch.
"""

from potstill._lazy import lazy_names

_HOMES = {
    "CorrectingSampler": "correcting",
    "OnPolicySampler": "on_policy",
    "SeqKDGenerator": "seqkd",
    "Written": "writing",
    "as_if_written": "on_policy",
    "check_room": "writing",
    "pad_left": "writing",
    "read_completions": "seqkd",
    "scrg_regenerate": "correcting",
    "write_tokens": "writing",
}
__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, globals(), _HOMES)
