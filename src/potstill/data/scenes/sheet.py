"""A contact sheet: what samples look like, for people."""

from __future__ import annotations

import textwrap
import unicodedata

from PIL import Image, ImageDraw, ImageFont

from potstill.data.scenes.dataset import SceneDataset
from potstill.errors import InputError, suggest

_SIDE, _GAP, _LINE = 144, 12, 15
_WIDTH = 2 * _SIDE + _GAP
_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")


def contact_sheet(dataset: SceneDataset, task: str | None = None, n: int = 12) -> Image.Image:
    """Return the first ``n`` samples of a task as one picture: image or images, text, and right answer.

    Letters beyond ASCII need a font of the system; where there is none, accents are left out of the sheet.

    Args:
        dataset: Where the samples come from.
        task: Which task; None = whatever comes.
        n: How many samples.

    Raises:
        InputError: if the dataset has no such task.
    """
    if task is not None and task not in dataset.tasks:
        raise InputError(f'the dataset has no task "{task}"', where="task", hint=suggest(str(task), dataset.tasks))
    samples = []
    for start in range(0, len(dataset), 64):
        indices = range(start, min(start + 64, len(dataset)))
        wanted = [i for i, one in zip(indices, dataset.tasks_of(indices)) if task in (None, one)]
        samples += dataset.__getitems__(wanted[: n - len(samples)]) if wanted else []
        if len(samples) == n:
            break
    columns = min(3, len(samples))
    height = _SIDE + 6 * _LINE + _GAP
    rows = -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * (_WIDTH + _GAP) + _GAP, rows * height + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    font, has_letters = _font()
    for place, sample in enumerate(samples):
        x = _GAP + place % columns * (_WIDTH + _GAP)
        y = _GAP + place // columns * height
        for number, pixels in enumerate(sample["images"]):
            picture = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            sheet.paste(picture, (x + number * (_SIDE + _GAP), y))
            pen.rectangle(
                (x + number * (_SIDE + _GAP), y, x + number * (_SIDE + _GAP) + _SIDE, y + _SIDE), outline="#999"
            )
        y += _SIDE + 4
        lines = [f"{sample['task']} / {sample['kind']} / {sample['index']}", *textwrap.wrap(sample["text"], 46)]
        if sample["truth"] != sample["text"]:
            lines += textwrap.wrap(f"= {sample['truth']}", 46)
        for number, line in enumerate(lines[:6]):
            line = line if has_letters else _without_accents(line)
            pen.text((x, y + number * _LINE), line, fill="#666" if number == 0 else "black", font=font)
    return sheet


def _font() -> tuple[ImageFont.FreeTypeFont, bool]:
    """Return a font and whether it has more than ASCII."""
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, 12), True
        except OSError:
            continue
    return ImageFont.load_default(size=13), False


def _without_accents(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))
