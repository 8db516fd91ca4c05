"""Arms: the sets of modules a policy chooses among."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from potstill.errors import InputError, RecipeError, suggest

MAX_MODULES_FOR_SUBSETS = 10


def make_arms(modules: Iterable[str], kind: str | Sequence[str | Sequence[str]] = "modules") -> list[tuple[str, ...]]:
    """Turn the modules of a model into the arms of a policy.

    Args:
        modules: Module names, each once.
        kind: "modules" = one arm for each module; "all_subsets" = one for each of the ``2^M - 1`` non-empty sets,
            small sets first, so the last arm is all modules at once; or the arms themselves, each a module name or a
            list of them.

    Returns:
        Arms in playing order, each a tuple of module names in the order of ``modules`` (own arms keep their order).

    Raises:
        InputError: no module, a module named twice, or too many modules for all subsets (more than 10).
        RecipeError: an unknown kind, or an arm with a module that does not exist; with the nearest name.

    Example:
        >>> make_arms(["image", "text"], "all_subsets")
        [('image',), ('text',), ('image', 'text')]
    """
    names = [only for (only,) in check_arms([_one_module(name) for name in _listed(modules, "modules")], "modules")]
    if not isinstance(kind, str):
        arms = check_arms(kind)
        for index, arm in enumerate(arms):
            for name in arm:
                if name not in names:
                    raise RecipeError(f'unknown module "{name}"', where=f"arms[{index}]", hint=suggest(name, names))
        return arms
    if kind == "modules":
        return [(name,) for name in names]
    if kind == "all_subsets":
        if len(names) > MAX_MODULES_FOR_SUBSETS:
            raise InputError(
                "too many modules to make an arm of every subset",
                where="arms",
                expected=f"at most {MAX_MODULES_FOR_SUBSETS} modules",
                got=f"{len(names)} modules, so {2 ** len(names) - 1} arms",
                hint="List the arms you want instead.",
            )
        return [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]
    raise RecipeError(f'unknown kind of arms "{kind}"', where="arms", hint=suggest(kind, ["modules", "all_subsets"]))


def arm_name(arm: Sequence[str]) -> str:
    """Return the name of an arm in logs, reports and recipes: its modules joined with "+"."""
    return "+".join(arm)


def check_arms(arms: int | Iterable[str | Sequence[str]], where: str = "arms") -> list[tuple[str, ...]]:
    """Return arms as a list of tuples of names; a number K stands for the nameless arms "0" .. "K-1".

    Raises:
        InputError: no arm, an empty arm, a name that is no text, or two arms of the same modules.
    """
    if isinstance(arms, int) and not isinstance(arms, bool):
        arms = [str(index) for index in range(arms)]
    checked: list[tuple[str, ...]] = []
    seen: dict[object, int] = {}
    for index, arm in enumerate(_listed(arms, where)):
        here = f"{where}[{index}]"
        names = (arm,) if isinstance(arm, str) else tuple(_listed(arm, here))
        for name in names:
            if not isinstance(name, str) or not name:
                raise InputError("not a module name", where=here, expected="text that is not empty", got=name)
        if not names:
            raise InputError("an arm without modules", where=here, expected="at least one module name")
        if len(set(names)) < len(names):
            raise InputError("a module appears twice in an arm", where=here, got=arm_name(names))
        # Also by printed name: two arms that look the same in the log and the report could not be told apart.
        for key in (frozenset(names), arm_name(names)):
            if seen.setdefault(key, index) != index:
                raise InputError(
                    "duplicate arm", where=here, got=arm_name(names), hint=f"It is the same as {where}[{seen[key]}]."
                )
        checked.append(names)
    if not checked:
        raise InputError("no arm to play", where=where, expected="at least one")
    return checked


def _listed(values: object, where: str) -> list:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError("not a list", where=where, expected="a list of names", got=values)
    return list(values)


def _one_module(name: object) -> tuple[object]:
    return (name,)
