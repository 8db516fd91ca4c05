"""Pictures of attention: maps as a veil over a picture, as squares, as a matrix of heads, and distances as dots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from potstill.report.charts import axis_along_x, marker
from potstill.report.svg import Scale, drawing, element, text
from potstill.report.text import is_finite, shorten

CELL, LEVELS, DARKEST = 10, 8, 0.78
FULL = 1000.0  # maps are in thousandths
MOST_LETTERS = 14


@dataclass(frozen=True)
class Spread:
    """One row of a chart of distances: a layer with the values of its heads in both models."""

    name: str
    teacher: list[float]
    student: list[float]


def picture_pattern(name: str, uri: str) -> Markup:
    """Return a fill that shows a picture; it is written once and used by every map over it."""
    image = element("image", href=uri, width=1, height=1, preserveAspectRatio="none")
    return element("pattern", image, id=name, width=1, height=1, patternContentUnits="objectBoundingBox")


def patterns(made: Sequence[Markup]) -> Markup:
    """Return an invisible drawing that holds fills."""
    return element("svg", *made, width=0, height=0, class_="fills", aria_hidden="true")


def unveiled(fills: Sequence[str | None], label: str) -> Markup:
    """Draw pictures as they are, side by side."""
    side, gap = 110, 8
    shown = [fill for fill in fills if fill is not None]
    body = [
        element("rect", x=i * (side + gap), y=0, width=side, height=side, fill=f"url(#{fill})")
        for i, fill in enumerate(shown)
    ]
    return drawing(len(shown) * (side + gap) - gap, side, label, *body, class_="plain-picture")


def veiled(
    fills: Sequence[str | None],
    maps: Sequence[Sequence[float]],
    grid: tuple[int, int],
    top: float,
    label: str,
    cell: int | None = None,
) -> Markup:
    """Draw maps over their pictures: what is not looked at is dark.

    Args:
        fills: Name of the fill of each picture; None = there is no picture.
        maps: The cells of each, row by row.
        grid: Rows and columns.
        top: The value that leaves a cell clear.
        label: What a screen reader says.
        cell: The cell that looks, with a frame around it in the first picture.
    """
    rows, columns = grid
    wide, high, gap = CELL * columns, CELL * rows, 6
    body = []
    for number, (fill, cells) in enumerate(zip(fills, maps)):
        x = number * (wide + gap)
        paint = {"class_": "track"} if fill is None else {"fill": f"url(#{fill})"}
        body.append(element("rect", x=x, y=0, width=wide, height=high, **paint))
        dark = [1 - _share(value, top) for value in cells]
        body += list(_levels(dark, grid, x, 0, CELL, "veil", DARKEST))
        if cell is not None and number == 0 and 0 <= cell < rows * columns:
            place = {"x": x + cell % columns * CELL + 0.5, "y": cell // columns * CELL + 0.5}
            body.append(element("rect", **place, width=CELL - 1, height=CELL - 1, class_="frame"))
    total = len(maps) * (wide + gap) - gap
    return drawing(total, high, label, *body, class_="overlay")


def word_matrix(queries: Sequence[str], keys: Sequence[str], rows: Sequence[Sequence[float]], label: str) -> Markup:
    """Draw which word (a row) looks at which (a column): the darker the more."""
    size, letter = 16, 6.2
    side = round(8 + letter * min(MOST_LETTERS, max((len(q) for q in queries), default=0)))
    head = round(10 + letter * 0.9 * min(MOST_LETTERS, max((len(k) for k in keys), default=0)))
    grid = (len(queries), len(keys))
    cells = [value for row in rows for value in row]
    wide, high = side + size * len(keys), head + size * len(queries)
    body = [element("rect", x=side, y=head, width=size * len(keys), height=size * len(queries), class_="track")]
    body += list(_levels([_share(v, FULL) ** 0.6 for v in cells], grid, side, head, size, "heat", 1.0))
    for i, query in enumerate(queries):
        body.append(text(side - 5, head + size * i + 12, shorten(query, MOST_LETTERS), anchor="end"))
    for i, key in enumerate(keys):
        x, y = side + size * i + 12, head - 5
        turn = f"rotate(-65 {x:.1f} {y:.1f})"
        body.append(element("text", shorten(key, MOST_LETTERS), x=x, y=y, class_="tick", transform=turn))
    return drawing(wide + 24, high + 2, label, *body)


def bars(values: Sequence[float], top: float, label: str) -> Markup:
    """Draw a map whose keys have no place as upright bars in a row."""
    high, wide = 44, 220
    step = wide / max(len(values), 1)
    body = [element("rect", x=0, y=0, width=wide, height=high, class_="track")]
    for i, value in enumerate(values):
        up = high * _share(value, top)
        body.append(
            element("rect", x=i * step + 0.1, y=high - up, width=max(step - 0.5, 0.5), height=up, class_="heat")
        )
    return drawing(wide, high, label, *body, class_="overlay")


def head_matrix(values: Sequence[Sequence[float | None]], label: str) -> Markup:
    """Draw how alike heads are: a row a head of the teacher, a column a head of the student, the likest framed."""
    columns = max((len(row) for row in values), default=0)
    wide, high, left, head = 44, 28, 62, 34
    body = [
        text(left + wide * columns / 2, 10, "student head", anchor="middle"),
        element(
            "text",
            "teacher head",
            x=12,
            y=head + high * len(values) / 2,
            class_="tick",
            text_anchor="middle",
            transform=f"rotate(-90 12 {head + high * len(values) / 2:.1f})",
        ),
    ]
    body += [text(left + wide * (j + 0.5), head - 8, str(j + 1), anchor="middle") for j in range(columns)]
    for i, row in enumerate(values):
        y = head + high * i
        body.append(text(left - 10, y + 18, str(i + 1), anchor="end"))
        best = max((v for v in row if is_finite(v)), default=None)
        for j, value in enumerate(row):
            x = left + wide * j
            share = _share(value, 1.0)
            cell = {"x": x + 1, "y": y + 1, "width": wide - 2, "height": high - 2}
            name = f"teacher head {i + 1}, student head {j + 1}"
            body += [
                element("rect", **cell, class_="track"),
                element("rect", element("title", name), **cell, class_="heat", opacity=f"{0.75 * share**2:.2f}"),
                text(x + wide / 2, y + 18, f"{value:.2f}" if is_finite(value) else "–", "cell", "middle"),
            ]
            if value is not None and value == best:
                body.append(element("rect", **cell, class_="best"))
    return drawing(left + wide * columns + 4, head + high * len(values) + 4, label, *body)


def distance_chart(rows: Sequence[Spread], style: str, unit: str, label: str, *, width: int) -> Markup:
    """Draw the distance of every head, a row a layer: the teacher above the rail, the student below."""
    row, bottom = 46, 34
    height = row * len(rows) + bottom
    largest = max((value for spread in rows for value in (*spread.teacher, *spread.student)), default=0.0)
    x = Scale(0.0, 1.08 * largest or 1.0, 8, width - 18)
    body = []
    for number, spread in enumerate(rows):
        y = row * number + 30.0
        body += [
            text(1, y - 15, shorten(spread.name, width // 8), class_="lane"),
            element("path", d=f"M8 {y}H{width - 18}", class_="rail"),
        ]
        for i, value in enumerate(spread.teacher):
            title = element("title", f"teacher, head {i + 1}: {value:.2f} {unit}")
            body.append(element("path", title, d=f"M{x(value):.1f} {y - 9:.1f}v8", class_="reference"))
        for i, value in enumerate(spread.student):
            title = element("title", f"student, head {i + 1}: {value:.2f} {unit}")
            body.append(element("g", title, marker(int(style[1:]), x(value), y + 6.5, 4.0), class_=f"series {style}"))
    return drawing(width, height, label, *body, axis_along_x(x, width, height, height - bottom + 2.0, unit=unit))


def _levels(
    shares: Sequence[float], grid: tuple[int, int], left: float, top: float, size: float, style: str, most: float
) -> Iterator[Markup]:
    """Fill the cells of a grid by their share, a path for each of a few levels; equal neighbours become one piece."""
    rows, columns = grid
    pieces: dict[int, list[str]] = {}
    for r in range(rows):
        c = 0
        while c < columns:
            level, start = round(LEVELS * shares[r * columns + c]), c
            while c < columns and round(LEVELS * shares[r * columns + c]) == level:
                c += 1
            if level:
                x, y, wide = left + start * size, top + r * size, (c - start) * size
                pieces.setdefault(level, []).append(f"M{x:g} {y:g}h{wide:g}v{size:g}h{-wide:g}z")
    for level, found in sorted(pieces.items()):
        yield element("path", d="".join(found), class_=style, opacity=f"{most * level / LEVELS:.2f}")


def _share(value: float | None, top: float) -> float:
    if not is_finite(value) or not math.isfinite(top) or top <= 0:
        return 0.0
    return min(max(value / top, 0.0), 1.0)
