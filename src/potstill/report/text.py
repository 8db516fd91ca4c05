"""Numbers and short phrases as the page shows them: units always, a true minus sign, no line break inside."""

from __future__ import annotations

import math

NBSP = "\u00a0"
NONE = "–"
_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def is_finite(value: float | None) -> bool:
    """Whether there is a number to show or draw."""
    return value is not None and math.isfinite(value)


def is_number(value: object) -> bool:
    """Whether a value from JSON is a number (true and false are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def short(value: float | None) -> str:
    """A setting as one would type it: ``1.0 → 1``, ``0.1 → 0.1``."""
    return f"{value:.4g}".replace("-", "−") if is_finite(value) else NONE


def significant(value: float | None, digits: int = 3) -> str:
    """``0.01234 → 0.0123``, ``1234 → 1,234``, ``-2 → −2``; tiny and huge numbers as powers of ten."""
    if not is_finite(value):
        return NONE
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    size = int(exponent)
    if size < -4 or size > 8:
        return f"{mantissa}·10^{size}".replace("-", "−")
    places = max(0, digits - 1 - size)
    return f"{value:,.{places}f}".replace("-", "−")


def scaled(value: float | None, unit: str = "") -> str:
    """``3120000 → 3.12 M``; ``scaled(2.1e9, "FLOPs") → 2.1 GFLOPs``."""
    if not is_finite(value):
        return NONE
    for factor, prefix in _SI:
        if abs(value) >= factor * 0.9995:
            return f"{significant(value / factor)}{NBSP}{prefix}{unit}"
    return f"{significant(value)}{NBSP}{unit}" if unit else significant(value)


def milliseconds(value: float | None) -> str:
    """``3.217 → 3.22 ms``."""
    return f"{significant(value)}{NBSP}ms" if is_finite(value) else NONE


def percent(value: float | None, digits: int = 1) -> str:
    """``0.9523 → 95.2 %``."""
    return f"{100 * value:.{digits}f}{NBSP}%".replace("-", "−") if is_finite(value) else NONE


def points(value: float | None) -> str:
    """A difference of two shares in percentage points: ``-0.021 → −2.1``."""
    if not is_finite(value):
        return NONE
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "±0.0" if text in ("+0.0", "−0.0") else text


def ratio(value: float | None) -> str:
    """``2.94 → 2.9×``."""
    return (
        f"{value:.1f}×" if is_finite(value) and value < 100 else f"{significant(value)}×" if is_finite(value) else NONE
    )


def joined(remarks: list[str]) -> str:
    """Join small remarks so that a line breaks only between them."""
    return " · ".join(remark.replace(" ", NBSP) for remark in remarks)


def shorten(text: str, limit: int) -> str:
    """Cut in the middle: both ends of a module path matter."""
    if len(text) <= limit:
        return text
    head = limit // 2
    return text[:head] + "…" + text[len(text) - (limit - head - 1) :]


def listed(names: list[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1] if names else ""
