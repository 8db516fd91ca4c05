"""Dotted paths of modules: finding, expanding and refusing them with a useful message."""

from __future__ import annotations

import difflib
import fnmatch
import re

from torch import nn

from potstill.errors import RecipeError


def has_module(model: nn.Module, path: str) -> bool:
    """Whether the model has a module at that dotted path."""
    here = model
    for name in path.split("."):
        if name not in here._modules or here._modules[name] is None:
            return False
        here = here._modules[name]
    return True


def block_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the outermost lists of two or more modules of one class, by path: what looks like a stack of blocks."""
    found: dict[str, nn.ModuleList] = {}
    for path, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) < 2:
            continue
        if len({type(child) for child in module}) > 1 or not list(module[0].children()):
            continue
        if not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = module
    return found


def expand_path(model: nn.Module, path: str, *, side: str, where: str | None = None) -> list[str]:
    """Return the paths of the layers that a path in a recipe stands for.

    A list of modules (``nn.ModuleList``) stands for its children, a pattern for all paths it fits, anything else for
    itself. ``*``, ``?`` and ``[...]`` stand for characters of one name and never reach across a dot.

    Args:
        model: The model the path is in.
        path: ``encoder.layers``, ``encoder.layers.*``, ``encoder.layers.[02]``, ``encoder.layers.3``.
        side: "student" or "teacher", for messages.
        where: Recipe path, for messages.

    Returns:
        Paths in the order of the model.

    Raises:
        RecipeError: if nothing is there; names what the model has and the nearest path.
    """
    if any(sign in path for sign in "*?["):
        parts = path.split(".")
        fits = [name for name, _ in model.named_modules() if _fits(name, parts)]
        if not fits:
            raise _unknown(model, path, side, where, "matches no module")
        return fits
    if not path or not has_module(model, path):
        raise _unknown(model, path, side, where, "no such module")
    module = model.get_submodule(path)
    if not isinstance(module, nn.ModuleList):
        return [path]
    if len(module) == 0:
        raise RecipeError(f'"{path}" of the {side} is an empty list', where=where)
    return [f"{path}.{name}" for name, _ in module.named_children()]


def _fits(name: str, pattern: list[str]) -> bool:
    parts = name.split(".")
    return len(parts) == len(pattern) and all(fnmatch.fnmatchcase(a, b) for a, b in zip(parts, pattern))


def _unknown(model: nn.Module, path: str, side: str, where: str | None, problem: str) -> RecipeError:
    names = [name for name, _ in model.named_modules() if name]
    near = difflib.get_close_matches(path, names, n=1, cutoff=0.5)
    has = _neighbours(model, path) or ", ".join(block_lists(model)) or ", ".join(names[:8])
    hint = f'Did you mean "{near[0]}"? ' if near else ""
    return RecipeError(
        f'"{path}": {problem} ({side} has {has})',
        where=where,
        hint=f'{hint}Run "potstill inspect" on the {side} to see its module paths.',
    )


def _neighbours(model: nn.Module, path: str) -> str | None:
    """``x.0 ... x.5`` if the path runs off the end of a list or names a layer by pattern."""
    numbered = re.match(r"(.+?)\.(\d+|[^.]*[*?\[][^.]*)(\.|$)", path)
    parent = numbered.group(1) if numbered else None
    if parent is None or not has_module(model, parent):
        return None
    names = [name for name, _ in model.get_submodule(parent).named_children()]
    if not names:
        return None
    return f"{parent}.{names[0]} ... {parent}.{names[-1]}" if len(names) > 1 else f"{parent}.{names[0]}"
