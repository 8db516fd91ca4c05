"""Terms and gradients that become NaN or Inf: what was found, and the batch that made it, kept and read back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from potstill.errors import IntegrityError, NumericsError
from potstill.train.checkpoint import read_json, write_json

FILES_KEPT = 4
MAX_BYTES = 256 << 20
SAMPLES_NAMED = 16


@dataclass
class Found:
    """Something that is not finite.

    Attributes:
        step: Optimiser steps done before.
        what: What became of which term or gradient, in words.
        term: Name of the objective, if one is to blame.
        module: The module that objective belongs to.
        samples: Ids of the batch's samples, where it has any.
        file: Where the batch was saved.
    """

    step: int
    what: str
    term: str | None = None
    module: str | None = None
    samples: list[int] | None = None
    file: str | None = None

    def error(self, hint: str) -> NumericsError:
        """Return it as an error that ends the run."""
        load = ""
        if self.file:
            load = f'The batch is kept: potstill.train.load_batch("{self.file}"). '
        return NumericsError(
            self.what,
            where=f"step {self.step}" + (f", module {self.module}" if self.module else ""),
            got=f"samples {self.samples[:SAMPLES_NAMED]}" if self.samples else None,
            hint=load + hint,
        )


def sample_ids(batch: Mapping[str, Any]) -> list[int] | None:
    """Return the ids of a batch's samples, if it carries them."""
    ids = batch.get("sample_id")
    return ids.flatten().tolist() if isinstance(ids, torch.Tensor) else None


def save_batch(path: Path, batch: Mapping[str, Any], found: Found) -> Path | None:
    """Write a batch as ``path`` (safetensors) and, beside it, ``.json`` with what is no tensor and what was found.

    The newest ``FILES_KEPT`` stay; tensors beyond ``MAX_BYTES`` in all are left out and named. A batch that cannot be
    written must not hide what was found: then None is returned.
    """
    tensors: dict[str, torch.Tensor] = {}
    form = _pack(batch, "batch", tensors, [MAX_BYTES])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".tmp")
        save_file(tensors, draft)
        os.replace(draft, path)
        write_json(path.with_suffix(".json"), {"version": 1, **asdict(found), "file": path.name, "batch": form})
        for old in sorted(path.parent.glob("step-*.safetensors"), key=lambda p: p.stat().st_mtime_ns)[:-FILES_KEPT]:
            old.unlink(missing_ok=True)
            old.with_suffix(".json").unlink(missing_ok=True)
    except OSError:
        return None
    return path


def load_batch(path: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a batch that made a term or gradient NaN or Inf, and what was found (``step``, ``what``, ``term``, …).

    Args:
        path: A file ``nonfinite/step-….safetensors`` of a run.

    Raises:
        IntegrityError: One of its two files is missing or damaged.
    """
    path = Path(path)
    about = read_json(path.with_suffix(".json"))
    try:
        return _unpack(about.pop("batch"), load_file(path)), about
    except Exception as error:  # safetensors raises a class of its own, and a damaged form any lookup error
        raise IntegrityError(f"holds no batch ({error})", where=str(path)) from error


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor], left: list[int]) -> Any:
    """Describe a value in JSON; its tensors go into ``tensors`` as long as ``left[0]`` bytes allow."""
    if isinstance(value, torch.Tensor):
        size = value.numel() * value.element_size()
        if size > left[0]:
            return {"left_out": list(value.shape), "dtype": str(value.dtype)}
        left[0] -= size
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"mapping": {str(k): _pack(v, f"{name}.{k}", tensors, left) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return {"list": [_pack(v, f"{name}.{i}", tensors, left) for i, v in enumerate(value)]}
    if value is None or isinstance(value, str | int | float):
        return {"value": value}
    return {"text": repr(value)[:1000]}


def _unpack(form: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    ((kind, value), *_) = form.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "mapping":
        return {k: _unpack(v, tensors) for k, v in value.items()}
    if kind == "list":
        return [_unpack(v, tensors) for v in value]
    return None if kind == "left_out" else value
