"""Every error Potstill raises on purpose, as one small tree.

::

    PotstillError
    ├── InputError(ValueError)   a value the caller gave is wrong
    │   ├── RecipeError          a field of a recipe; says which
    │   └── ShapeError           tensors that do not fit together
    ├── IntegrityError           a file is missing, damaged or not the one it claims to be
    ├── NumericsError            a loss term became NaN or Inf
    └── Interrupted              stopped from outside; the run can be resumed

Catch ``PotstillError`` to catch them all. The command line turns each into one message and an exit code
(``exit_code``); anything else that escapes is our fault and exits with 1.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class PotstillError(Exception):
    """Base of all deliberate errors: where, what was expected, what came, and what to do next.

    Args:
        message: What is wrong, in the user's words.
        where: Path of the offending field (``objectives[2].tap``), file, or argument.
        expected: What would have been accepted.
        got: What came instead.
        hint: The next step for the user.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        got: object | None = None,
        hint: str | None = None,
    ):
        self.message, self.where, self.expected, self.got, self.hint = message, where, expected, got, hint
        super().__init__(message)

    def __str__(self) -> str:
        text = f"{_short(self.where)}: {_short(self.message, 600)}" if self.where else _short(self.message, 600)
        if self.expected is not None:
            text += f"; expected {_short(self.expected, 600)}"
        if self.got is not None:
            text += f"; got {_short(self.got, 200)}"
        return f"{text}. {_short(self.hint, 1000)}" if self.hint else text

    def at(self, where: str) -> PotstillError:
        """Return the same error, placed in a recipe or file; an inner place is kept behind the outer one."""
        self.where = f"{where}.{self.where}" if self.where else where
        return self


class InputError(PotstillError, ValueError):
    """A value the caller gave is wrong. Also a ``ValueError``, so plain ``except ValueError`` works."""


class RecipeError(InputError):
    """A recipe field is unknown, mistyped, or does not fit the models it names."""


class ShapeError(InputError):
    """Tensors, layers or vocabularies that do not fit together."""


class IntegrityError(PotstillError):
    """A file is missing, damaged, or not the one it claims to be."""


class NumericsError(PotstillError):
    """A loss term became NaN or Inf; names the step, the term, the module and the samples."""


class Interrupted(PotstillError):  # noqa: N818 - an event, not a mistake
    """The run was stopped from outside after writing a checkpoint; ``--resume`` goes on."""

    exit_code = 130


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that lists what exists, the nearest name first: for the ``hint`` of an unknown name."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return (f'Did you mean "{near[0]}"? ' if near else "") + (f"Known: {listed}." if known else "None is known.")


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def is_disk_full(error: Exception) -> bool:
    """Return whether this is a full disk or quota; writers in other languages keep the number to themselves."""
    signs = ("No space left", "File too large", "quota", "StreamWriter")
    return getattr(error, "errno", None) in DISK_FULL or any(sign in _reason(error) for sign in signs)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def explain_disk(error: Exception, where: str | None) -> IntegrityError:
    """Turn what the operating system or a writer of weights refused into a message about the file or folder."""
    text = _reason(error)
    if is_disk_full(error):
        message, hint = f"the disk is full ({text})", "Free some space"
    elif getattr(error, "errno", None) in NOT_ALLOWED:
        message, hint = f"cannot be written ({text})", "Choose a folder that you may write to"
    else:
        message, hint = f"reading or writing failed ({text})", "Check the path and the disk"
    name = getattr(error, "filename", None)
    return IntegrityError(
        message,
        where=str(name) if isinstance(name, str | bytes) else where,
        hint=f"{hint}; a run that has begun goes on with --resume.",
    )


def _short(value: object, limit: int = 400) -> str:
    """Return one line of printable text: what a stranger's file holds must neither fill nor steer a terminal."""
    text = value if isinstance(value, str) else repr(value)
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
