"""The discount of policies that have none."""

from __future__ import annotations

import warnings

from potstill.policies.posterior import check_gamma


def always_one(gamma: float, policy: str) -> float:
    """Return 1; warn if another (legal) discount was asked for, raise InputError for one outside (0, 1]."""
    if check_gamma(gamma) != 1.0:
        warnings.warn(f"{policy} forgets nothing: gamma={gamma} counts for nothing, it is 1.", stacklevel=3)
    return 1.0
