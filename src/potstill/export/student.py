"""Write a student to disk alone, and prove by loading it that the files are the model."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from potstill.errors import InputError, IntegrityError, is_disk_full
from potstill.export.card import model_card
from potstill.models.load import without_progress_bars
from potstill.taps.inputs import model_inputs

WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.json", "README.md"


def export_student(
    student: nn.Module,
    folder: str | Path,
    processor: Any = None,
    *,
    batch: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a student, load it back, compare, and only then put it in place.

    A transformers model is written with ``save_pretrained``; anything else as weights and a ``config.json`` that names
    its class, to be loaded into the same module built in Python (``safetensors.torch.load_model``). Everything is
    written beside the target first, so that an interrupted or failed export leaves no folder that looks complete.

    Args:
        student: The model alone: not wrapped, no ``DistillModule``.
        folder: Where it goes; its parent is made if need be.
        processor: Anything with ``save_pretrained`` (tokenizer, processor), written beside the model.
        batch: Inputs to compare on: the outputs of model and file must be equal bit for bit. Without it only the
            weights are compared.
        facts: For the model card, see ``model_card``; class, parameters and dtype are filled in.
        overwrite: Replace an earlier export. A folder that holds no model is never replaced.

    Returns:
        The folder.

    Raises:
        InputError: The folder exists, or the model still carries helpers of the training.
        IntegrityError: What was read back differs, or the disk failed; nothing is left behind.
    """
    folder = Path(folder).expanduser()
    _refuse_helpers(student)
    _check_target(folder, overwrite)
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        with without_progress_bars():
            _write(student, partial, processor)
            verify_export(student, partial, batch)
        (partial / CARD_FILE).write_text(model_card(_known(student) | dict(facts or {})), encoding="utf-8")
        _flush(partial)
        partial.chmod(0o777 & ~_umask())
        _put_in_place(partial, folder)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(
            f"could not be written ({error})",
            where=str(folder),
            hint=("Free some disk space and export again; " if is_disk_full(error) else "Check the folder's rights; ")
            + "nothing half-written was left.",
        ) from error
    finally:
        if partial is not None and partial.exists():
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def verify_export(student: nn.Module, folder: str | Path, batch: Mapping[str, Any] | None = None) -> None:
    """Load an export and compare it with the model it was made of, bit for bit.

    Raises:
        IntegrityError: Names the first weight or output that differs.
    """
    folder = Path(folder)
    _check_names(student, folder)
    loaded = _load(student, folder)
    theirs = loaded.state_dict()
    for name, tensor in student.state_dict().items():
        if not _same(tensor, theirs.get(name)):
            raise IntegrityError(f'the weight "{name}" changed on its way to disk', where=str(folder))
    if batch is None:
        return
    device = next(student.parameters()).device
    modes = [(module, module.training) for module in student.modules()]
    loaded.to(device).eval()
    student.eval()
    # Read from a file, a weight begins where it did there; kernels that begin a vector elsewhere round otherwise.
    for tensor in (*loaded.parameters(), *loaded.buffers()):
        tensor.data = tensor.data.clone()
    try:
        with torch.inference_mode():
            inputs = {
                k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in model_inputs(student)(batch).items()
            }
            ours, theirs = student(**inputs), loaded(**inputs)
    finally:
        for module, was_training in modes:
            module.training = was_training
    for (name, mine), (_, other) in zip(_tensors(ours), _tensors(theirs), strict=True):
        if not _same(mine, other):
            raise IntegrityError(f'the output "{name}" of the loaded model differs', where=str(folder))


def _write(student: nn.Module, folder: Path, processor: Any) -> None:
    if hasattr(student, "save_pretrained"):
        student.save_pretrained(folder)
    else:
        save_model(student, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
        kind = type(student)
        config = {"format": "potstill.plain", "version": 1, "class": f"{kind.__module__}.{kind.__qualname__}"}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    if processor is not None:
        if not hasattr(processor, "save_pretrained"):
            raise InputError(
                "cannot be written beside the model", where="processor", expected="save_pretrained", got=type(processor)
            )
        processor.save_pretrained(folder)


def _load(student: nn.Module, folder: Path) -> nn.Module:
    try:
        if hasattr(student, "save_pretrained"):
            return type(student).from_pretrained(folder, dtype=_dtype_of(student), local_files_only=True)
        loaded = copy.deepcopy(student)
        with torch.no_grad():
            # Whatever the file does not bring must show as a difference.
            for tensor in loaded.state_dict().values():
                tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
        load_model(loaded, str(folder / WEIGHTS_FILE), strict=True)
        return loaded
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise IntegrityError(f"cannot be loaded back ({error})", where=str(folder)) from error


def _refuse_helpers(student: nn.Module) -> None:
    if not isinstance(student, nn.Module):
        raise InputError("is no model", where="student", expected="nn.Module", got=type(student))
    if any(hasattr(p, "full_tensor") for p in student.parameters()):
        raise InputError(
            "the student is sharded over several processes",
            where="student",
            hint="Export what potstill.train.whole_student(module) returns, on the first process.",
        )
    children = [name for name, _ in student.named_children()]
    # DistillModule; then DDP and torch.compile, whose only child is the model.
    if {"student", "parts"} <= set(children) or children in (["module"], ["_orig_mod"]):
        raise InputError(
            "the student is still wrapped",
            where="student",
            got=type(student).__name__,
            hint=f"Export the model inside: .{children[0]}",
        )


def _check_names(student: nn.Module, folder: Path) -> None:
    """Refuse a file that holds any tensor which is not the student's own."""
    own = _own_names(student)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            foreign = sorted(set(file.keys()) - own)
        # save_pretrained of some models renames keys for old readers; a foreign name is then a renamed own one.
        if foreign and not getattr(student, "_checkpoint_conversion_mapping", None):
            raise IntegrityError("holds a tensor that is not the student's", where=str(path), got=foreign[0])


def _own_names(student: nn.Module) -> set[str]:
    """Return the names of the student's tensors, and those that ``save_pretrained`` gives them for old readers.

    transformers (5.23) renames the layers of a ViT so (test_a_vit_is_exported_under_the_names_old_readers_know).
    """
    tensors = student.state_dict()
    if not hasattr(student, "save_pretrained"):
        return set(tensors)
    from transformers.core_model_loading import revert_weight_conversion

    return {*tensors, *revert_weight_conversion(student, dict(tensors))}


def _check_target(folder: Path, overwrite: bool) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError("is not a plain folder", where="folder", got=str(folder))
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise InputError(
            "the folder exists", where="folder", got=str(folder), hint="Choose another, or pass overwrite=True."
        )
    if not (folder / CONFIG_FILE).is_file() or not any(folder.glob("*.safetensors")):
        raise InputError(
            "the folder holds something else than a model and is not replaced", where="folder", got=str(folder)
        )


def _put_in_place(partial: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(partial, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    try:
        os.replace(folder, old / "it")
        try:
            os.replace(partial, folder)
        except OSError:
            os.replace(old / "it", folder)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _umask() -> int:
    # mkdtemp makes a private folder; the export gets the rights any new folder would have.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _known(student: nn.Module) -> dict[str, Any]:
    parameters = sum(p.numel() for p in student.parameters())
    return {
        "model_class": type(student).__name__,
        "parameters": f"{parameters:,}",
        "dtype": str(_dtype_of(student)).removeprefix("torch."),
    }


def _dtype_of(student: nn.Module) -> torch.dtype:
    return next((p.dtype for p in student.parameters() if p.is_floating_point()), torch.float32)


def _same(mine: torch.Tensor, other: torch.Tensor | None) -> bool:
    """True if both hold the same bytes, so that NaN equals NaN and -0 differs from 0."""
    if other is None or mine.shape != other.shape or mine.dtype != other.dtype:
        return False
    mine, other = (t.detach().cpu().contiguous().flatten() for t in (mine, other))
    return torch.equal(mine.view(torch.uint8), other.view(torch.uint8)) if mine.numel() else True


def _tensors(value: Any, name: str = "output") -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        return [(name, value)]
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _tensors(item, f"{name}.{key}")]
    if isinstance(value, tuple | list):
        return [pair for i, item in enumerate(value) for pair in _tensors(item, f"{name}[{i}]")]
    return []
