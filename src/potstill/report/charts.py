"""The kinds of chart on the page. Colours, dashes and fonts come from the style sheet by class name.

``a0``, ``a1`` … are the colours of modules and arms, ``r0``, ``r1`` … those of runs; no meaning hangs on colour alone:
runs differ in dash and marker too, arms have a lane or a panel of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from potstill.report.svg import Bucket, Scale, band, drawing, element, fitted, path, text, thin, tick_labels
from potstill.report.text import percent, shorten, significant

LEFT, RIGHT, TOP, BOTTOM = 46, 10, 16, 34
WIDE, NARROW = 860, 360
MARKERS = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Line:
    """A series of a line chart: its name, its class (``r0``), and its thinned points."""

    name: str
    style: str
    points: list[Bucket]


@dataclass(frozen=True)
class Lane:
    """One row of a strip chart: a name, a class, and the (first, last, strength) spans in which it was active."""

    name: str
    style: str
    spans: list[tuple[float, float, float]]


@dataclass(frozen=True)
class Mark:
    """One value of a dot chart; ``style`` None draws the upright line of the reference."""

    name: str
    style: str | None
    value: float
    error: float


def marker(shape: int, x: float, y: float, size: float = 4.5) -> Markup:
    """Return one of four filled shapes, so that runs can be told apart without colour."""
    kind = MARKERS[shape % len(MARKERS)]
    if kind == "circle":
        return element("circle", cx=x, cy=y, r=size, class_="dot")
    corners = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "triangle": ((0, -1.2), (1.2, 0.95), (-1.2, 0.95)),
    }[kind]
    return element("path", d=path([(x + dx * size, y + dy * size) for dx, dy in corners]) + "Z", class_="dot")


def swatch(style: str) -> Markup:
    """Return the little line with its marker that a legend shows for a run."""
    line = element("path", d="M1 7H31", class_="line")
    body = element("g", line, marker(int(style[1:]), 16.0, 7.0, 4.0), class_=f"series {style}")
    return element("svg", body, viewBox="0 0 32 14", width=32, height=14, class_="swatch", aria_hidden="true")


def line_chart(lines: Sequence[Line], label: str, *, last_x: float, width: int = NARROW, height: int = 200) -> Markup:
    """Draw means as lines and, where points were joined, their range as a band; gaps stay gaps."""
    values = [value for line in lines for point in line.points for value in (point.low, point.high)]
    x = Scale(0.0, max(last_x, 1.0), LEFT, width - RIGHT)
    y = fitted(values, height - BOTTOM, TOP, log_above=20)
    body = []
    for line in lines:
        centre = [(x(point.x), _at(y, point.mean)) for point in line.points]
        area = [(x(point.x), _at(y, point.low), _at(y, point.high)) for point in line.points]
        is_joined = any(point.low != point.high for point in line.points if math.isfinite(point.mean))
        body.append(
            element(
                "g",
                element("title", line.name),
                element("path", d=band(area), class_="band") if is_joined else "",
                element("path", d=path(centre), class_="line"),
                *(element("circle", cx=px, cy=py, r=1.8, class_="dot") for px, py in _lonely(centre)),
                class_=f"series {line.style}",
            )
        )
    return drawing(width, height, label, _frame(x, y, width, height), *body)


def posterior_chart(
    name: str,
    style: str,
    points: Sequence[tuple[float, float, float]],
    rewards: Sequence[tuple[float, float]],
    label: str,
    *,
    y_range: tuple[float, float],
    last_x: float,
    width: int = NARROW,
    height: int = 200,
) -> Markup:
    """Draw an arm's posterior mean with its ± one standard deviation band, and the rewards it earned as dots.

    Args:
        name: The arm.
        style: Its colour class.
        points: (step, mean, std) after every round.
        rewards: (step, reward) of the rounds in which the arm was played.
        label: What a screen reader says.
        y_range: Rewards beyond it are drawn as small triangles at the edge.
        last_x: End of the step axis.
        width: Of the picture, pixels.
        height: Of the picture, pixels.
    """
    x = Scale(0.0, max(last_x, 1.0), LEFT, width - RIGHT)
    y = Scale(*y_range, height - BOTTOM, TOP)
    steps = [step for step, _, _ in points]
    means = thin(steps, [mean for _, mean, _ in points])
    lows = thin(steps, [mean - std for _, mean, std in points])
    highs = thin(steps, [mean + std for _, mean, std in points])
    area = [(x(low.x), _at(y, low.mean), _at(y, high.mean)) for low, high in zip(lows, highs)]
    dots = []
    for step, reward in rewards:
        if math.isfinite(reward):
            inside = y.low <= reward <= y.high
            px, py = x(step), y(reward)
            tip = 4.0 if reward > y.high else -4.0
            edge = path([(px - 3, py + tip), (px + 3, py + tip), (px, py)]) + "Z"
            dots.append(
                element("circle", cx=px, cy=py, r=2.0, class_="faint")
                if inside
                else element("path", d=edge, class_="faint")
            )
    body = element(
        "g",
        element("title", name),
        element("path", d=band(area), class_="band"),
        *dots,
        element("path", d=path([(x(point.x), _at(y, point.mean)) for point in means]), class_="line"),
        class_=f"series {style} solid",
    )
    zero = element("path", d=f"M{LEFT} {y(0.0):.1f}H{width - RIGHT}", class_="zero") if y.low < 0 < y.high else ""
    return drawing(width, height, label, _frame(x, y, width, height), zero, body)


def strip_chart(lanes: Sequence[Lane], label: str, *, last_x: float, width: int = WIDE) -> Markup:
    """Draw when each lane was active: one row a lane, its name above, filled where it was on."""
    row, bar = 38, 16
    height = row * len(lanes) + BOTTOM - 4
    x = Scale(0.0, max(last_x, 1.0), 1, width - 12)
    body = []
    for number, lane in enumerate(lanes):
        top = row * number + 17
        by_strength: dict[float, list[str]] = {}
        for first, last, strength in lane.spans:
            wide = max(x(last) - x(first), 0.6)
            by_strength.setdefault(strength, []).append(f"M{x(first):.1f} {top}h{wide:.1f}v{bar}h{-wide:.1f}z")
        body += [
            text(1, top - 5, shorten(lane.name, width // 8), class_="lane"),
            element("rect", x=1, y=top, width=width - 13, height=bar, class_="track"),
            element(
                "g",
                element("title", lane.name),
                *(element("path", d="".join(d), class_="fill", opacity=s) for s, d in sorted(by_strength.items())),
                class_=f"series {lane.style}",
            ),
        ]
    return drawing(width, height, label, *body, axis_along_x(x, width, height, row * len(lanes) + 1))


def dot_chart(rows: Sequence[tuple[str, Sequence[Mark]]], label: str, *, width: int = WIDE) -> Markup:
    """Draw shares on one axis, a row per task: the reference as an upright line, others as markers with ± error."""
    row = 40
    height = row * len(rows) + BOTTOM - 4
    values = [mark.value for _, marks in rows for mark in marks if math.isfinite(mark.value)]
    low = max(0.0, math.floor(10 * (min(values, default=0.0) - 0.03)) / 10)
    x = Scale(low, 1.0, 8, width - 18)
    body = []
    for number, (name, marks) in enumerate(rows):
        y = row * number + 28.0
        body += [
            text(1, y - 13, shorten(name, 60), class_="lane"),
            element("path", d=f"M8 {y}H{width - 18}", class_="rail"),
        ]
        for mark in marks:
            if not math.isfinite(mark.value):
                continue
            px = x(mark.value)
            title = element("title", f"{mark.name}, {name}: {percent(mark.value)}")
            if mark.style is None:
                body.append(element("g", title, element("path", d=f"M{px:.1f} {y - 10}V{y + 10}", class_="reference")))
                continue
            error = mark.error if math.isfinite(mark.error) else 0.0
            bar = element("path", d=f"M{x(mark.value - error):.1f} {y}H{x(mark.value + error):.1f}", class_="error")
            body.append(element("g", title, bar, marker(int(mark.style[1:]), px, y), class_=f"series {mark.style}"))
    axis = axis_along_x(x, width, height, height - BOTTOM + 10.0, as_percent=True, unit="")
    return drawing(width, height, label, axis, *body)


def bar(share: float | None, style: str = "plain") -> Markup:
    """Return a horizontal bar for a table cell, filled to ``share`` of its width; the number stands beside it."""
    filled = 100 * min(max(share, 0.0), 1.0) if share is not None and math.isfinite(share) else 0.0
    return element(
        "svg",
        element("rect", x=0, y=0, width=100, height=8, class_="track"),
        element("g", element("rect", x=0, y=0, width=filled, height=8, class_="fill"), class_=f"series {style}"),
        viewBox="0 0 100 8",
        class_="bar",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def _frame(x: Scale, y: Scale, width: int, height: int) -> Markup:
    ticks = y.ticks(4)
    parts = []
    for value, label in zip(ticks, tick_labels(ticks, is_log=y.is_log)):
        parts.append(element("path", d=f"M{LEFT} {y(value):.1f}H{width - RIGHT}", class_="grid"))
        parts.append(text(LEFT - 6.0, y(value) + 3.5, label, anchor="end"))
    return Markup("").join(parts) + axis_along_x(x, width, height, height - BOTTOM)


def axis_along_x(
    x: Scale, width: int, height: int, top: float, *, as_percent: bool = False, unit: str = "step"
) -> Markup:
    """Return the axis below a chart: a line, ticks, their labels and the unit at its end."""
    ticks = x.ticks(5)
    labels = [percent(value, 0) for value in ticks] if as_percent else tick_labels(ticks)
    parts = [element("path", d=f"M{x.start:.1f} {top:.1f}H{x.end:.1f}", class_="axis")]
    for value, label in zip(ticks, labels):
        px = x(value)
        near_end = px > width - 30
        parts.append(element("path", d=f"M{px:.1f} {top:.1f}v4", class_="axis"))
        parts.append(text(width - 2.0 if near_end else px, top + 16, label, anchor="end" if near_end else "middle"))
    if unit:
        parts.append(text(x.end, height - 2.0, unit, anchor="end"))
    return element("g", *parts)


def _at(scale: Scale, value: float) -> float:
    return scale(value) if math.isfinite(value) else math.nan


def _lonely(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points with a gap on both sides: a line would not show them."""
    padded = [(0.0, math.nan), *points, (0.0, math.nan)]
    alone = []
    for before, point, after in zip(padded, padded[1:], padded[2:]):
        if math.isfinite(point[1]) and not math.isfinite(before[1]) and not math.isfinite(after[1]):
            alone.append(point)
    return alone


def describe(name: str, values: Sequence[float]) -> str:
    """Say a series in words, for readers who do not see the picture: first, last, lowest and highest value."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return f"{name}: no finite value"
    first, last, low, high = (significant(v) for v in (finite[0], finite[-1], min(finite), max(finite)))
    return f"{name}: from {first} to {last}, lowest {low}, highest {high}"
