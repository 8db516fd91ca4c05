"""SVG by hand: escaped elements, scales with ticks, and the thinning of long series.

Every string that reaches the page from here went through ``element``, which escapes text and attributes alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from potstill.report.text import short, significant


def element(name: str, /, *children: str | Markup, **attributes: object) -> Markup:
    """Return ``<name …>children</name>``; plain strings are escaped, ``Markup`` is taken as it is.

    In attribute names ``_`` stands for ``-`` and a trailing ``_`` is dropped (``class_``). None leaves one out.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, inner)


def drawing(width: float, height: float, label: str, *children: str | Markup, class_: str = "chart") -> Markup:
    """Return a whole picture that scales with its container; ``label`` is what a screen reader says."""
    box = f"0 0 {_plain(width)} {_plain(height)}"
    return element(
        "svg", *children, viewBox=box, width=width, height=height, class_=class_, role="img", aria_label=label
    )


def text(x: float, y: float, content: str, class_: str = "tick", anchor: str = "start") -> Markup:
    """Return a line of text whose baseline starts, ends or is centred at (x, y)."""
    return element("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


@dataclass(frozen=True)
class Scale:
    """Maps data from [low, high] to pixels [start, end], linearly or by logarithm; outside values are clipped."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of ``value``."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Return about ``count`` round values within the range."""
        return _log_ticks(self.low, self.high) if self.is_log else _linear_ticks(self.low, self.high, count)


def fitted(values: Iterable[float], start: float, end: float, *, log_above: float = math.inf) -> Scale:
    """Return a scale over the finite values with some air at both ends.

    The scale is logarithmic if all values are positive and the largest exceeds the smallest by ``log_above`` times.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Scale(0.0, 1.0, start, end)
    low, high = min(finite), max(finite)
    if low > 0 and high / low >= log_above:
        air = (high / low) ** 0.06
        return Scale(low / air, high * air, start, end, is_log=True)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    bottom = 0.0 if low >= 0 and low - air < 0 else low - air
    return Scale(bottom, high + air, start, end)


def tick_labels(values: Sequence[float], *, is_log: bool = False) -> list[str]:
    """Write the ticks of a linear axis alike: the same number of decimals, thousands as k, millions as M."""
    if is_log:
        return [significant(value, 1) for value in values]
    largest = max((abs(value) for value in values), default=0.0)
    for factor, suffix in ((1e6, "M"), (1e3, "k")):
        if largest >= 10 * factor:
            return [short(value / factor) + suffix if value else "0" for value in values]
    if largest and largest < 1e-3:
        return [significant(value, 1) for value in values]
    step = min((b - a for a, b in pairwise(values)), default=1.0)
    places = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return [f"{value + 0.0:,.{places}f}".replace("-", "−") for value in values]


def path(points: Sequence[tuple[float, float]]) -> str:
    """Return the ``d`` of an open line; a point with NaN breaks it."""
    parts, is_down = [], False
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            is_down = False
            continue
        parts.append(f"{'L' if is_down else 'M'}{_plain(x)} {_plain(y)}")
        is_down = True
    return "".join(parts)


def band(points: Sequence[tuple[float, float, float]]) -> str:
    """Return the ``d`` of the area between (x, low) and (x, high); a point with NaN splits it."""
    pieces: list[list[tuple[float, float, float]]] = [[]]
    for point in points:
        if all(math.isfinite(part) for part in point):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    drawn = []
    for piece in pieces:
        if len(piece) > 1:
            outline = [(x, low) for x, low, _ in piece] + [(x, high) for x, _, high in reversed(piece)]
            drawn.append(path(outline) + "Z")
    return "".join(drawn)


@dataclass(frozen=True)
class Bucket:
    """Neighbouring points drawn as one: centre, mean and range of the finite ones; NaN if there is none."""

    x: float
    mean: float
    low: float
    high: float


def thin(xs: Sequence[float], ys: Sequence[float], limit: int = 100) -> list[Bucket]:
    """Join neighbours until at most ``limit`` points are left; each keeps mean, minimum and maximum."""
    if not xs:
        return []
    size = math.ceil(len(xs) / limit)
    buckets = []
    for first in range(0, len(xs), size):
        part = [y for y in ys[first : first + size] if math.isfinite(y)]
        where = xs[first : first + size]
        x = sum(where) / len(where)
        mean = math.fsum(part) / len(part) if part else math.nan
        buckets.append(Bucket(x, mean, min(part, default=math.nan), max(part, default=math.nan)))
    return buckets


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / max(count, 1)
    if not (math.isfinite(raw) and raw > 0):
        return []
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    ticks = []
    while (first + len(ticks)) * step <= high + 1e-9 * step and len(ticks) <= 2 * count + 2:
        ticks.append((first + len(ticks)) * step)
    return ticks


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = max(1, last - first)
    factors = (1, 2, 5) if decades <= 2 else (1, 3) if decades <= 3 else (1,)
    every = max(1, math.ceil(decades / 6))
    values = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
    return [value for value in values if low <= value <= high]


def _plain(value: object) -> object:
    """Shorten numbers: a tenth of a pixel is enough."""
    if isinstance(value, float):
        return f"{value:.1f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"
    return value
