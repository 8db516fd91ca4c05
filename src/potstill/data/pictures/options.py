"""What can be asked of a set of pictures, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from potstill.errors import InputError, suggest

AUGMENTS = ("none", "light", "strong")


@dataclass(frozen=True)
class PictureOptions:
    """How the training set of a picture source is made. Other splits take none of this but ``known``.

    Attributes:
        label_noise: Share of samples with a wrong label; which ones and which label is fixed by sample.
        labelled: How many samples of each class keep their label (a whole number; needs a pool), or which share of all
            (below 1). The others have -100. None = all.
        known: Only the first ``known`` things have labels; the rest are new classes, without. None = all are known.
        views: Augmented pictures of each sample, 1 or 2.
        augment: "none", "light" or "strong".
        pool: Number of different samples; None = as many as are asked for.
        junk: Share of the pool that shows something else than its label says, and no class of the task at all.
        odd: Share of the pool in an odd style: inverted, blurred, without colour or faded.
        masks: Also give ``class_map``: what is where in the picture.
    """

    label_noise: float = 0.0
    labelled: int | float | None = None
    known: int | None = None
    views: int = 1
    augment: str = "light"
    pool: int | None = None
    junk: float = 0.0
    odd: float = 0.0
    masks: bool = False

    def check(self, things: int, classes: int, *, is_by_thing: bool) -> None:
        """Refuse what is out of range or does not go together.

        Args:
            things: Number of things there are.
            classes: Number of classes they are sorted into.
            is_by_thing: True if every thing is a class.

        Raises:
            InputError: Names the option.
        """
        if self.augment not in AUGMENTS:
            raise InputError(
                f'unknown augmentation "{self.augment}"', where="augment", hint=suggest(str(self.augment), AUGMENTS)
            )
        checks = [
            (_is_share(self.label_noise, below=True), "label_noise", "a share from 0 to below 1", self.label_noise),
            (_is_share(self.junk, below=True), "junk", "a share from 0 to below 1", self.junk),
            (_is_share(self.odd), "odd", "a share from 0 to 1", self.odd),
            (self.views in (1, 2) and not isinstance(self.views, bool), "views", "1 or 2", self.views),
            (
                self.pool is None or (_is_whole(self.pool) and self.pool >= 1),
                "pool",
                "a number of samples; null = without end",
                self.pool,
            ),
            (
                self.known is None or (_is_whole(self.known) and 2 <= self.known < things),
                "known",
                f"2 to {things - 1}: at least one thing has to be new",
                self.known,
            ),
            (
                self.labelled is None
                or (_is_whole(self.labelled) and self.labelled >= 1)
                or (isinstance(self.labelled, float) and 0 < self.labelled < 1),
                "labelled",
                "a whole number of samples of each class, or a share between 0 and 1",
                self.labelled,
            ),
        ]
        for is_fine, where, expected, got in checks:
            if not is_fine:
                raise InputError("out of range", where=where, expected=expected, got=got)
        if self.known is not None and not is_by_thing:
            raise InputError("new classes are things, and the target sorts things into fewer classes", where="known")
        if isinstance(self.labelled, int) and self.pool is None:
            raise InputError(
                "so many samples of each class can only be counted in a pool",
                where="labelled",
                hint="Set pool, or give a share such as 0.1.",
            )
        if self.label_noise and min(classes, self.known or classes) < 2:
            raise InputError("there is no other class to mistake one for", where="label_noise")


def check_whole(value: Any, where: str, low: int | None = None, high: int | None = None) -> None:
    """Refuse what is no whole number, or one outside ``low`` to ``high``.

    Raises:
        InputError: Names ``where``.
    """
    if not _is_whole(value) or (low is not None and value < low) or (high is not None and value > high):
        ends = f" from {low}" * (low is not None) + f" to {high}" * (high is not None)
        raise InputError("out of range", where=where, expected=f"a whole number{ends}", got=value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_share(value: Any, *, below: bool = False) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= 1 and not (below and value == 1)
