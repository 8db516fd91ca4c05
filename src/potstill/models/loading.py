"""Loading a model's weights from safetensors, and from nothing else."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from potstill.errors import InputError, IntegrityError

_OWN_CLASSES = {"CocaModel": "potstill.models.coca"}
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_pretrained(
    source: str | Path,
    *,
    model_class: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    where: str | None = None,
) -> Any:
    """Load a model from a folder or a hub name.

    Only safetensors files are read; pickled weights and code that comes with a model are refused. A model whose file
    lacks weights is refused too, because the missing ones would silently be random.

    Args:
        source: Folder written by ``save_pretrained``, or a name on the hub.
        model_class: Class name in transformers or Potstill; by default the one the configuration names.
        revision: Branch, tag or commit on the hub.
        dtype: Kind of number of the weights; by default as stored.
        where: Recipe path, for messages.

    Returns:
        The model in eval mode.

    Raises:
        InputError: if the folder or class does not exist, or the model needs remote code.
        IntegrityError: if there are no safetensors weights, they are damaged, or they do not fit the class.
    """
    folder = Path(source)
    if folder.is_dir():
        _check_folder(folder, where)
    elif folder.is_absolute() or str(source).startswith((".", "~")):
        raise InputError(f'there is no folder "{source}"', where=where)
    cls = _model_class(source, model_class, revision, where)
    try:
        model, report = cls.from_pretrained(
            str(source), revision=revision or "main", use_safetensors=True, output_loading_info=True,
            **({} if dtype is None else {"dtype": dtype}),
        )  # fmt: skip
    except SafetensorError as error:
        raise IntegrityError(f'the weights of "{source}" are damaged: {error}', where=where) from error
    except OSError as error:
        raise IntegrityError(
            f'"{source}" has no safetensors weights that can be read: {_first_line(error)}', where=where
        ) from error
    except (RuntimeError, ValueError) as error:
        raise IntegrityError(
            f'the weights of "{source}" do not fit {cls.__name__}: {_first_line(error)}', where=where
        ) from error
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise IntegrityError(
            f'the weights of "{source}" lack {len(lacking)} tensors of {cls.__name__}, the first is {lacking[0]}',
            where=where,
            hint="Name the class they were saved from, or a complete model.",
        )
    return model


def _check_folder(folder: Path, where: str | None) -> None:
    if not (folder / "config.json").is_file():
        raise IntegrityError(f'"{folder}" has no config.json', where=where, hint="Give a folder of save_pretrained.")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
        raise IntegrityError(
            f'"{folder}" has no safetensors weights' + (f" but pickled ones ({pickled[0]})" if pickled else ""),
            where=where,
            hint="Pickle files can run any code and are refused. Convert them with save_pretrained."
            if pickled
            else None,
        )


def _model_class(source: str | Path, name: str | None, revision: str | None, where: str | None) -> Any:
    import transformers

    try:
        found, _ = transformers.PreTrainedConfig.get_config_dict(str(source), revision=revision or "main")
    except (OSError, ValueError) as error:
        raise InputError(f'"{source}" cannot be read: {_first_line(error)}', where=where) from error
    name = name or next(iter(found.get("architectures") or []), None)
    if name is None:
        raise InputError(
            f'the configuration of "{source}" names no model class', where=where, hint="Give the class by name."
        )
    if name in _OWN_CLASSES:
        return getattr(importlib.import_module(_OWN_CLASSES[name]), name)
    cls = getattr(transformers, name, None)
    if cls is None:
        raise InputError(
            f'model class "{name}" of "{source}" is not in transformers {transformers.__version__}',
            where=where,
            hint="It needs code that comes with the model, which is refused."
            if "auto_map" in found
            else "A newer transformers may have it.",
        )
    return cls


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
