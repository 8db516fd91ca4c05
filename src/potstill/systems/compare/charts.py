"""The charts of a comparison: a row of dots for every method, and a small panel for every method against an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from potstill.report.charts import marker
from potstill.report.svg import Scale, drawing, element, fitted, path, text, tick_labels
from potstill.report.text import shorten

WIDE, NARROW = 860, 360
_ROW, _TOP, _FOOT = 32, 18, 30


@dataclass(frozen=True)
class DotRow:
    """A method: its values, one a seed, their mean, and how far its interval reaches to either side."""

    name: str
    values: Sequence[float]
    mean: float
    half: float | None = None


def dot_rows(
    rows: Sequence[DotRow],
    label: str,
    write: Callable[[float], str],
    *,
    low: float | None = None,
    high: float | None = None,
    width: int = WIDE,
) -> Markup:
    """Draw a row for every method: its seeds as dots, its mean as a diamond with its interval.

    Args:
        rows: From above.
        label: What a screen reader says.
        write: How a value is written.
        low: Where the axis begins; None = just below the values.
        high: Where it ends; None = just above.
        width: Of the picture, pixels.
    """
    height = _ROW * len(rows) + _FOOT
    reach = [v for row in rows for v in (*row.values, row.mean - (row.half or 0), row.mean + (row.half or 0))]
    x = fitted(reach, 8, width - 18)
    x = Scale(x.low if low is None else low, x.high if high is None else high, x.start, x.end)
    body = []
    for number, row in enumerate(rows):
        y = _ROW * number + _TOP + 4.0
        said = f"{row.name}: {write(row.mean)}" + (f" ± {write(row.half)}" if row.half is not None else "")
        half = row.half or 0.0
        body += [
            text(1, y - 9, shorten(row.name, width // 8), class_="lane"),
            element("path", d=f"M8 {y}H{width - 18}", class_="rail"),
            element(
                "g",
                element("title", said),
                *(element("circle", cx=x(value), cy=y, r=3.2, class_="faint") for value in row.values),
                element("path", d=f"M{x(row.mean - half):.1f} {y}H{x(row.mean + half):.1f}", class_="error"),
                marker(2, x(row.mean), y, 4.2),
                class_="series a0",
            ),
        ]
    return drawing(width, height, label, _axis(x, width, height - _FOOT + 8.0, write), *body)


@dataclass(frozen=True)
class Curve:
    """A method over an axis: (x, mean, half width of its interval or None), in order of x."""

    name: str
    points: Sequence[tuple[float, float, float | None]]


def panel(
    curves: Sequence[Curve], chosen: int, label: str, write: Callable[[float], str], unit: str, *, height: int = 190
) -> Markup:
    """Draw one method among all: its curve strong with intervals, the others faint behind it, on equal axes."""
    width, left, bottom, top = NARROW, 52, 34, 10
    reach = [v for c in curves for _, mean, half in c.points for v in (mean - (half or 0), mean + (half or 0))]
    x = fitted([p[0] for c in curves for p in c.points], left, width - 12, log_above=3)
    y = fitted(reach, height - bottom, top)
    body = []
    for value in y.ticks(4):
        body.append(element("path", d=f"M{left} {y(value):.1f}H{width - 12}", class_="grid"))
        body.append(text(left - 6.0, y(value) + 3.5, write(value), anchor="end"))
    body.append(_axis(x, width, height - bottom, None, unit=unit, height=height))
    for number, curve in sorted(enumerate(curves), key=lambda pair: pair[0] == chosen):
        line = path([(x(at), y(mean)) for at, mean, _ in curve.points])
        if number != chosen:
            body.append(element("path", d=line, class_="ghost"))
            continue
        bars = [
            element("path", d=f"M{x(at):.1f} {y(mean - half):.1f}V{y(mean + half):.1f}", class_="error")
            for at, mean, half in curve.points
            if half is not None
        ]
        dots = [element("circle", cx=x(at), cy=y(mean), r=3.2, class_="dot") for at, mean, _ in curve.points]
        title = element("title", curve.name)
        body.append(element("g", title, element("path", d=line, class_="line"), *bars, *dots, class_="series a0 solid"))
    return drawing(width, height, label, *body)


def _axis(
    x: Scale,
    width: int,
    top: float,
    write: Callable[[float], str] | None,
    *,
    unit: str = "",
    height: float | None = None,
) -> Markup:
    ticks = x.ticks(5)
    labels = [write(value) for value in ticks] if write else tick_labels(ticks, is_log=x.is_log)
    parts = [element("path", d=f"M{x.start:.1f} {top:.1f}H{x.end:.1f}", class_="axis")]
    for value, label in zip(ticks, labels):
        px = x(value)
        near_end = px > width - 30
        parts.append(element("path", d=f"M{px:.1f} {top:.1f}v4", class_="axis"))
        parts.append(text(width - 2.0 if near_end else px, top + 16, label, anchor="end" if near_end else "middle"))
    if unit and height is not None:
        parts.append(text(x.end, height - 3.0, unit, anchor="end"))
    return element("g", *parts)
