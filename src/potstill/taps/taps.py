"""Capture tensors inside any ``nn.Module`` by dotted path, with forward hooks.

Hooks are used instead of ``output_hidden_states`` because that keeps every layer alive, knows only a model's own
list of states, and silently returns nothing once ``fully_shard`` has swapped the root class.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from potstill.errors import InputError, RecipeError, suggest

_SPEC = re.compile(r"^(?P<path>[^@]*)(@(?P<side>input|output)(\[(?P<index>-?\d+)\])?(\.(?P<field>\w+))?)?$")


@dataclass(frozen=True)
class Tap:
    """Where to read one tensor: ``path``, ``path@input``, ``path@output[1]`` or ``path@output.last_hidden_state``.

    Without a choice the output is meant; of a tuple the first element, of a ``ModelOutput`` the last hidden state.
    """

    path: str
    side: str = "output"
    index: int | None = None
    field: str | None = None

    @classmethod
    def parse(cls, text: str, where: str | None = None) -> Tap:
        """Read a tap from its text form; raises ``RecipeError`` if it is malformed."""
        match = _SPEC.match(text)
        if not match:
            raise RecipeError(
                f'cannot read the tap "{text}"',
                where=where,
                expected='"path", "path@input", "path@output[1]" or "path@output.field"',
            )
        index = match["index"]
        return cls(match["path"], match["side"] or "output", None if index is None else int(index), match["field"])

    def select(self, value: Any, name: str | None = None) -> torch.Tensor:
        """Pick the tapped tensor out of what the module received or returned; ``name`` is for the message."""
        if self.field is not None:
            value = getattr(value, self.field, None)
        elif self.index is not None:
            value = value[self.index]
        elif hasattr(value, "last_hidden_state"):
            value = value.last_hidden_state
        elif isinstance(value, tuple | list):
            value = value[0] if value else None
        if not isinstance(value, torch.Tensor):
            raise InputError(
                f"{self.side} of the tapped module is no tensor",
                where=f'tap "{name or self.path}"',
                got=type(value).__name__,
                hint='Choose an element, for example "path@output[0]".',
            )
        return value


def expand_paths(model: nn.Module, patterns: Iterable[str], *, where: str = "taps", owner: str = "model") -> list[str]:
    """Return the module paths that the patterns (``*`` allowed) match, in the model's own order.

    A pattern that matches nothing is a ``RecipeError`` naming the nearest paths.
    """
    names = [name for name, _ in model.named_modules() if name]
    found: list[str] = []
    for pattern in patterns:
        path, at, rest = pattern.partition("@")
        hits = [n for n in names if fnmatch.fnmatchcase(n, path)] if any(c in path for c in "*?[") else [path]
        if not hits or any(hit not in names for hit in hits):
            raise RecipeError(
                f'no such module "{path}" in the {owner}',
                where=where,
                hint=suggest(path, names) + ' Run "potstill inspect" to list module paths.',
            )
        found += [hit + at + rest for hit in hits if hit + at + rest not in found]
    return found


class Taps:
    """Forward hooks on some modules; between ``open()`` and ``close()`` they keep the first tensor each sees.

    Works with any module, under DDP, ``fully_shard`` and non-reentrant gradient checkpointing: the recomputation in
    backward happens after ``close()`` and is ignored. Install before ``torch.compile``; a hook added later does not
    fire. Use as a context manager, or call ``remove()``.

    Args:
        model: The module to look into.
        paths: Taps in text form (see ``Tap``).
        where: Recipe path for error messages.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> with Taps(net, ["0"]) as taps:
        ...     taps.open()
        ...     _ = net(torch.ones(4, 2))
        ...     taps.close()["0"].shape
        torch.Size([4, 3])
    """

    def __init__(self, model: nn.Module, paths: Iterable[str], *, where: str = "taps"):
        self.paths = expand_paths(model, paths, where=where, owner=type(model).__name__)
        self._seen: dict[str, torch.Tensor] = {}
        self._wanted: frozenset[str] | None = None
        self._handles = []
        for text in self.paths:
            tap = Tap.parse(text, where)
            module = model.get_submodule(tap.path)
            if tap.side == "input":
                hook = module.register_forward_pre_hook(self._make_input_hook(text, tap))
            else:
                hook = module.register_forward_hook(self._make_output_hook(text, tap))
            self._handles.append(hook)

    def open(self, only: Iterable[str] | None = None) -> None:
        """Start keeping tensors, of all taps or of those named."""
        self._seen = {}
        self._wanted = frozenset(self.paths if only is None else only)

    def close(self) -> dict[str, torch.Tensor]:
        """Stop, and hand over what was seen; a tap that saw nothing is an error that names it."""
        seen, wanted = self._seen, self._wanted or frozenset()
        self._seen, self._wanted = {}, None
        missing = sorted(wanted - seen.keys())
        if missing:
            raise InputError(
                "the tapped module did not run in this forward pass",
                where=f'tap "{missing[0]}"',
                hint="Tap a module that every batch goes through; install taps before torch.compile.",
            )
        return seen

    def discard(self) -> None:
        """Stop and forget; for the error path, so that a failed forward leaves nothing behind."""
        self._seen, self._wanted = {}, None

    def remove(self) -> None:
        """Take all hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def remove_from(self, copied: nn.Module) -> None:
        """Take the hooks off a deep copy of the model, which has them too."""
        for module in copied.modules():
            for handle in self._handles:
                module._forward_hooks.pop(handle.id, None)
                module._forward_pre_hooks.pop(handle.id, None)

    def __enter__(self) -> Taps:
        return self

    def __exit__(self, *exc) -> None:
        self.remove()

    def _keep(self, text: str, tap: Tap, value: Any) -> None:
        if self._wanted is not None and text in self._wanted and text not in self._seen:
            self._seen[text] = tap.select(value, text)

    def _make_output_hook(self, text: str, tap: Tap):
        return lambda module, args, output: self._keep(text, tap, output)

    def _make_input_hook(self, text: str, tap: Tap):
        return lambda module, args: self._keep(text, tap, args)
