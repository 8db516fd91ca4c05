"""Which student layer imitates which teacher layer."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.errors import InputError, RecipeError, ShapeError, suggest

__all__ = ["layer_map", "layer_pairs", "parse_layer_map"]

STRATEGIES = ("skip", "last")


def layer_map(n_student: int, n_teacher: int) -> list[tuple[int, int]]:
    """Pair every student layer with a teacher layer, evenly spaced and ending on the last.

    Counting from one, student layer l is paired with teacher layer ceil(l · n_teacher / n_student), so the last
    student layer always imitates the last teacher layer, and n_student = n_teacher pairs equal positions.

    Args:
        n_student: Number of student layers, at least 1.
        n_teacher: Number of teacher layers, at least ``n_student``.

    Returns:
        ``n_student`` pairs ``(student index, teacher index)``, both counted from 0.

    Raises:
        ShapeError: if a count is below one, or the student has more layers than the teacher.

    Source:
        OPTIMA (arXiv 2310.04550) with the layer spacing of the first author's public layerwise code: every
        (n_teacher / n_student)-th layer. Where that is no whole number we round up, which keeps the end fixed.

    Example:
        >>> layer_map(2, 5)
        [(0, 2), (1, 4)]
    """
    if n_student < 1 or n_teacher < 1:
        raise ShapeError("cannot map layers", expected="at least one on each side", got=f"{n_student} and {n_teacher}")
    if n_student > n_teacher:
        raise ShapeError(
            f"the student has {n_student} layers, more than the {n_teacher} of the teacher",
            hint="Give a layer map by hand: a list of [student layer, teacher layer], counted from 0.",
        )
    return [(i, -(-(i + 1) * n_teacher // n_student) - 1) for i in range(n_student)]


def layer_pairs(n_student: int, n_teacher: int, strategy: str = "skip") -> list[tuple[int, int]]:
    """Pair every hidden state of the student, the embeddings included, with one of the teacher.

    Here state 0 is what the embeddings give and state i what layer i gives, counted from 1: n layers have n + 1 states.

    Args:
        n_student: Number of student layers, at least 1.
        n_teacher: Number of teacher layers, at least ``n_student``.
        strategy: "skip" spreads the pairs evenly, i with i · n_teacher / n_student rounded down; "last" takes the
            teacher's last states, i with n_teacher - n_student + i.

    Returns:
        ``n_student + 1`` pairs ``(student state, teacher state)``; the last pair is the last state of both.

    Raises:
        InputError: if the strategy is unknown.
        ShapeError: if a count is below one, or the student has more layers than the teacher.

    Source:
        He et al., "Distiller" (arXiv 2109.11105), as in the official code. Its third strategy, weights of all pairs by
        earth mover's distance, is not built.

    Example:
        >>> layer_pairs(2, 5), layer_pairs(2, 5, "last")
        ([(0, 0), (1, 2), (2, 5)], [(0, 3), (1, 4), (2, 5)])
    """
    if strategy not in STRATEGIES:
        raise InputError(
            "unknown strategy",
            where="layer_pairs",
            expected='"skip" or "last"',
            hint=suggest(str(strategy), STRATEGIES),
        )
    layer_map(n_student, n_teacher)  # refuses the same counts
    if strategy == "last":
        return [(i, n_teacher - n_student + i) for i in range(n_student + 1)]
    return [(i, i * n_teacher // n_student) for i in range(n_student + 1)]


def parse_layer_map(
    pairs: Sequence[Sequence[int]], n_student: int, n_teacher: int, where: str = "map"
) -> list[tuple[int, int]]:
    """Check a layer map written by hand and return it as pairs.

    Layers are counted from 0. A teacher layer may serve several student layers; a student layer may appear once
    only for each teacher layer.

    Args:
        pairs: ``[[student layer, teacher layer], ...]`` as it stands in the recipe.
        n_student: Number of student layers of the module.
        n_teacher: Number of teacher layers of the module.
        where: Recipe path of the field, for messages.

    Returns:
        The pairs, in the order given.

    Raises:
        RecipeError: if it is no list of pairs, is empty, leaves the range, or names a pair twice.
    """
    form = "a list of [student layer, teacher layer] pairs, counted from 0"
    if isinstance(pairs, (str, bytes)) or not isinstance(pairs, Sequence):
        raise RecipeError("a layer map is a list", where=where, expected=form, got=pairs)
    if not pairs:
        raise RecipeError("the layer map is empty", where=where, expected=form)
    checked: list[tuple[int, int]] = []
    for i, pair in enumerate(pairs):
        here = f"{where}[{i}]"
        if (
            isinstance(pair, (str, bytes))
            or not isinstance(pair, Sequence)
            or len(pair) != 2
            or any(isinstance(n, bool) or not isinstance(n, int) for n in pair)
        ):
            raise RecipeError("not a pair of layer numbers", where=here, expected=form, got=pair)
        for number, count, side in zip(pair, (n_student, n_teacher), ("student", "teacher")):
            if not 0 <= number < count:
                raise RecipeError(
                    f"{side} layer {number} does not exist", where=here, expected=f"0 to {count - 1}", got=number
                )
        if tuple(pair) in checked:
            raise RecipeError("this pair is named twice", where=here, got=list(pair))
        checked.append((pair[0], pair[1]))
    return checked
