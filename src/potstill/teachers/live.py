"""A teacher that is a model held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from potstill.errors import InputError
from potstill.taps import Signal, Taps, observe
from potstill.taps.signal import RestingHead


class LiveTeacher:
    """Runs a frozen model and returns the signal that the objectives ask for.

    The one owner of "frozen": parameters need no gradient, the model is in eval mode before every pass, and passes
    run without a graph. It is deliberately no ``nn.Module``, so that it enters no state dict, optimiser or DDP wrapper.

    Args:
        model: The teacher. Its parameters are frozen in place.
        outputs: Names of outputs to return, dotted (``task_logits.vqa``).
        taps: What to look at inside, see ``Tap``.
        inputs: Batch keys the model takes; ``None`` = those its ``forward`` names.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        outputs: Iterable[str] = (),
        taps: Iterable[str] = (),
        inputs: Iterable[str] | None = None,
    ):
        from potstill.taps.inputs import model_inputs

        self.model = model.requires_grad_(False).eval()
        self.outputs = list(outputs)
        self.head: RestingHead | None = None  # an output head that is left out of every pass
        self._taps = Taps(model, taps, where="teacher taps")
        self.pick = model_inputs(model, inputs, own="teacher_")

    @property
    def taps(self) -> list[str]:
        """The tapped paths."""
        return self._taps.paths

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> LiveTeacher:
        """Place the model; returns self."""
        self.model.to(device=device, dtype=dtype)
        return self

    @torch.no_grad()
    def signal(self, batch: Mapping[str, Any], taps: Iterable[str] | None = None) -> Signal:
        """Run the model on one batch.

        Args:
            batch: The batch; keys the model does not take are left out. A key ``teacher_<key>`` goes to it in place of
                ``<key>``.
            taps: Taps wanted this time; ``None`` = all.
        """
        # eval() walks all modules and sets each, every step; looking is enough, and somebody may have called train().
        if any(module.training for module in self.model.modules()):
            self.model.eval()
        wanted = self.taps if taps is None else taps
        return observe(self.model, self.pick(batch), self._taps, self.outputs, wanted, self.head)

    def refuse_sharing(self, student: nn.Module) -> None:
        """Raise if teacher and student share a parameter: freezing one would freeze the other."""
        mine = {_place(p): n for n, p in self.model.named_parameters() if p.numel()}
        for name, parameter in student.named_parameters():
            if _place(parameter) and _place(parameter) in mine:
                raise InputError(
                    f'teacher and student share the parameter "{name}"',
                    where="student",
                    hint="Deep-copy the model before building the student from it.",
                )

    def close(self) -> None:
        """Remove the taps."""
        self._taps.remove()


def live_teachers(
    models: Mapping[str, nn.Module | LiveTeacher],
    outputs_of: Callable[[str], Iterable[str]],
    taps_of: Callable[[str], Iterable[str]],
    inputs: Iterable[str] | None = None,
) -> dict[str, LiveTeacher]:
    """Return teachers by name, each ready to return the outputs and taps asked of it; ready ones stay as they are."""
    return {
        name: LiveTeacher(model, outputs=outputs_of(name), taps=taps_of(name), inputs=inputs)
        if isinstance(model, nn.Module)
        else model
        for name, model in models.items()
    }


def _place(parameter: nn.Parameter) -> int:
    # A sharded parameter is a shell around this rank's share, which may be empty (0).
    return getattr(parameter, "_local_tensor", parameter).data_ptr()


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, shapes, dtypes and bytes of all weights: equal iff the weights are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
