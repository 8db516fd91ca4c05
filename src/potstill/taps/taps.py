"""Capture tensors inside any ``nn.Module`` by dotted path: hidden states and attention maps.

Hidden states are taken by forward hooks, because ``output_hidden_states`` keeps every layer alive, knows only a model's
own list of states, and silently returns nothing once ``fully_shard`` has swapped the root class. Attention maps are
taken as ``potstill.taps.attention`` says, because asking the model for them switches all of it to eager attention.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from potstill.errors import InputError, RecipeError, suggest
from potstill.taps.attention import Reading, find_attention, pick_rows
from potstill.taps.probabilities import attention_probs

_SPEC = re.compile(
    r"^(?P<path>[^@]*)(@(?P<side>input|output|(self_|cross_)?attention)(\[(?P<index>-?\d+)\])?(\.(?P<field>\w+))?)?$"
)
HEAD_MEAN = "head_mean"


@dataclass(frozen=True)
class Tap:
    """Where to read one tensor.

    ``path``, ``path@input``, ``path@output[1]`` and ``path@output.last_hidden_state`` are what a module receives or
    returns: without a choice the output, of a tuple the first element, of a ``ModelOutput`` the last hidden state.

    ``path@attention`` is the attention map of the module, ``[B, H, Q, K]``, fp32, before dropout; of a block that holds
    one attention module, that one's; ``@self_attention`` and ``@cross_attention`` choose where a block has both.
    ``@attention[32]`` reads only 32 query positions, evenly spaced; ``@attention.head_mean`` only the mean over heads,
    ``[B, 1, Q, K]``.
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
                expected='"path", "path@input", "path@output[1]", "path@output.field" or "path@attention"',
            )
        index = None if match["index"] is None else int(match["index"])
        tap = cls(match["path"], match["side"] or "output", index, match["field"])
        if tap.is_attention and (tap.field not in (None, HEAD_MEAN) or (index is not None and index < 1)):
            raise RecipeError(
                f'cannot read the tap "{text}"',
                where=where,
                expected=f'"{tap.path}@{tap.side}", "...[number of rows]" or "....{HEAD_MEAN}"',
            )
        return tap

    @property
    def is_attention(self) -> bool:
        """True if an attention map is meant."""
        return self.side.endswith("attention")

    @property
    def kind(self) -> str | None:
        """Which attention is meant, self or cross; None = whichever there is."""
        return self.side.rpartition("_attention")[0] or None

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
    names = [name for name, _ in model.named_modules()]
    found: list[str] = []
    for pattern in patterns:
        path, at, rest = pattern.partition("@")
        hits = [path]
        if any(c in path for c in "*?["):
            hits = [n for n in names if n and fnmatch.fnmatchcase(n, path)]
        if not hits or any(hit not in names for hit in hits):
            raise RecipeError(
                f'no such module "{path}" in the {owner}',
                where=where,
                hint=suggest(path, names) + ' Run "potstill inspect" to list module paths.',
            )
        found += [hit + at + rest for hit in hits if hit + at + rest not in found]
    return found


class Taps:
    """Watches some modules; between ``open()`` and ``close()`` it keeps the first tensor each tap sees.

    Works with any module, under DDP, ``fully_shard`` and non-reentrant gradient checkpointing: the recomputation in
    backward happens after ``close()`` and is ignored. Install before ``torch.compile``; a hook added later does not
    fire. Use as a context manager, or call ``remove()``.

    Args:
        model: The module to look into.
        paths: Taps in text form (see ``Tap``).
        where: Recipe path for error messages.
        reduce: Tap -> function of its attention map ``[B, H, Q, K]``; what it returns is kept in place of the map. So
            a map of many megabytes need not live longer than its own loss.

    Raises:
        RecipeError: A path names no module, or no attention that can be read.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> with Taps(net, ["0"]) as taps:
        ...     taps.open()
        ...     _ = net(torch.ones(4, 2))
        ...     taps.close()["0"].shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        paths: Iterable[str],
        *,
        where: str = "taps",
        reduce: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    ):
        self.paths = expand_paths(model, paths, where=where, owner=type(model).__name__)
        self._reduce = dict(reduce or {})
        self._seen: dict[str, torch.Tensor] = {}
        self._wanted: frozenset[str] | None = None
        self._again: frozenset[str] = frozenset()  # what a checkpointed block has to compute once more in backward
        self._has_graph = False
        self._handles = []
        self._readings = []
        try:
            self._install(model, where)
        except BaseException:
            self.remove()
            raise

    def _install(self, model: nn.Module, where: str) -> None:
        if self.paths:
            self._handles.append(model.register_forward_pre_hook(self._note_graph))
        readers: dict[str, list[tuple[str, Tap]]] = {}
        for text in self.paths:
            tap = Tap.parse(text, where)
            if tap.is_attention:
                readers.setdefault(find_attention(model, tap.path, tap.kind, where=where), []).append((text, tap))
                continue
            module = model.get_submodule(tap.path)
            if tap.side == "input":
                hook = module.register_forward_pre_hook(self._make_input_hook(text, tap))
            else:
                hook = module.register_forward_hook(self._make_output_hook(text, tap))
            self._handles.append(hook)
        for path, taps in readers.items():
            module = model.get_submodule(path)
            self._readings.append(Reading(module, _Look(self, taps, module)))

    def open(self, only: Iterable[str] | None = None) -> None:
        """Start keeping tensors, of all taps or of those named."""
        self._seen, self._again = {}, frozenset()
        self._wanted = frozenset(self.paths if only is None else only)
        self._has_graph = False

    def close(self) -> dict[str, torch.Tensor]:
        """Stop, and hand over what was seen; a tap that saw nothing is an error that names it."""
        seen, wanted = self._seen, self._wanted or frozenset()
        self._seen, self._wanted = {}, None
        self._again = wanted if self._has_graph else frozenset()
        missing = sorted(wanted - seen.keys())
        if missing:
            what = "gave no attention map" if Tap.parse(missing[0]).is_attention else "did not run"
            raise InputError(
                f"the tapped module {what} in this forward pass",
                where=f'tap "{missing[0]}"',
                hint="Tap a module that every batch goes through; install taps before torch.compile.",
            )
        return seen

    def discard(self) -> None:
        """Stop and forget; for the error path, so that a failed forward leaves nothing behind."""
        self._seen, self._wanted, self._again = {}, None, frozenset()

    def remove(self) -> None:
        """Take everything off the model."""
        for handle in [*self._handles, *self._readings]:
            handle.remove()
        self._handles, self._readings = [], []

    def remove_from(self, copied: nn.Module) -> None:
        """Take the taps off a deep copy of the model, which has them too."""
        for reading in self._readings:
            reading.remove_from(copied)
        for module in copied.modules():
            for handle in self._handles:
                module._forward_hooks.pop(handle.id, None)
                module._forward_pre_hooks.pop(handle.id, None)

    def __enter__(self) -> Taps:
        return self

    def __exit__(self, *exc) -> None:
        self.remove()

    def _note_graph(self, model: nn.Module, args: Any) -> None:
        self._has_graph = torch.is_grad_enabled()

    def _wants(self, text: str, module: nn.Module) -> bool:
        if self._wanted is None or text not in self._wanted or text in self._seen:
            return False
        lost_graph = self._has_graph and not torch.is_grad_enabled()
        if lost_graph and any(p.requires_grad for p in module.parameters()):
            raise InputError(
                f'the tapped module "{text}" runs without a graph: nothing it shows could be trained',
                where=f'tap "{text}"',
                hint='With gradient checkpointing set "use_reentrant": False.',
            )
        return True

    def _keep(self, text: str, tap: Tap, module: nn.Module, value: Any) -> None:
        if self._wants(text, module):
            self._seen[text] = tap.select(value, text)

    def _make_output_hook(self, text: str, tap: Tap):
        return lambda module, args, output: self._keep(text, tap, module, output)

    def _make_input_hook(self, text: str, tap: Tap):
        return lambda module, args: self._keep(text, tap, module, args)


class _Look:
    """What a tapped attention module tells of its calls; see ``potstill.taps.attention.See``."""

    def __init__(self, owner: Taps, taps: Sequence[tuple[str, Tap]], module: nn.Module):
        self._owner, self._taps, self._module = owner, taps, module

    def wants(self) -> bool:
        return any(self._owner._wants(text, self._module) or self._must_repeat(text) for text, _ in self._taps)

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        scaling: float,
        position_bias: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> None:
        for text, tap in self._taps:
            is_wanted = self._owner._wants(text, self._module)
            if not is_wanted and not self._must_repeat(text):
                continue
            rows = (query, position_bias, attention_mask)
            if tap.index is not None:
                rows = pick_rows(tap.index, *rows)
            value = attention_probs(rows[0], key, scaling, *rows[1:])
            if tap.field == HEAD_MEAN:
                value = value.mean(1, keepdim=True)
            if text in self._owner._reduce:
                value = self._owner._reduce[text](value)
            if is_wanted:
                self._owner._seen[text] = value

    def _must_repeat(self, text: str) -> bool:
        # In backward a checkpointed block must do again all it did, or its saved tensors do not match.
        return text in self._owner._again and torch.is_grad_enabled()


class AttentionTap:
    """Attention maps of some modules, read while the model computes attention as it always does.

    Args:
        model: The model to look into.
        modules: Paths of attention modules, or of blocks with one; ``path@cross_attention`` and the other forms of
            ``Tap`` are understood too.
        rows: Read only so many query positions, evenly spaced.
        reduce: A function of the map of each module, ``[B, H, Q, K]``; what it returns is kept in its place.

    Raises:
        RecipeError: A path names no module, or no attention that can be read.

    Example:
        >>> import torch
        >>> attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        >>> x = torch.ones(1, 3, 8)
        >>> with AttentionTap(attention, [""]) as tap:
        ...     _ = attention(x, x, x, need_weights=False)
        ...     tap.maps()[""].shape
        torch.Size([1, 2, 3, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Iterable[str],
        *,
        rows: int | None = None,
        reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        plain = "@attention" if rows is None else f"@attention[{rows}]"
        paths = expand_paths(model, [path if "@" in path else path + plain for path in modules])
        self._names = {path: path.removesuffix(plain) for path in paths}
        self._taps = Taps(model, paths, reduce=None if reduce is None else dict.fromkeys(paths, reduce))
        self._taps.open()

    def maps(self) -> dict[str, torch.Tensor]:
        """Return what the modules showed since the last call (or the start), by the names they were asked for.

        Of several forward passes in between the first counts.

        Raises:
            InputError: One of them gave no map; the message names it.
        """
        try:
            seen = self._taps.close()
        finally:
            self._taps.open()
        return {name: seen[path] for path, name in self._names.items()}

    def remove(self) -> None:
        """Take the taps off the model."""
        self._taps.remove()

    def __enter__(self) -> AttentionTap:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()
