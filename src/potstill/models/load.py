"""Load a model by packaged name, folder or hub name, from safetensors, and only if it is what it claims to be."""

from __future__ import annotations

import hashlib
import importlib
import json
import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from potstill.errors import InputError, IntegrityError, PotstillError, RecipeError, suggest
from potstill.models.fetch import FETCHABLE, fetched_folder
from potstill.models.memory import refuse_too_large
from potstill.models.sizes import absurd_size
from potstill.registry import Registry

WEIGHTS = Path(__file__).parent / "weights"
MANIFEST = "MANIFEST.json"
PACKAGED: Registry[Path] = Registry("packaged model")
"""Folders with a ``MANIFEST.json`` that plugins add; those in ``WEIGHTS`` are found without being listed."""

# Model types of our own and where their classes are.
OWN_TYPES = {
    "potstill_coca": "potstill.models.coca",
    "potstill_novel_classes": "potstill.models.novel_classes",
    "potstill_pseudo_classes": "potstill.models.pseudo_classes",
    "potstill_vl_t5": "potstill.models.vl_t5",
}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$", re.ASCII)
_GGUF = "GGUF files are not read: convert the model to a folder with config.json and model.safetensors first."
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


# What transformers, torch and tokenizers make of files that are damaged or do not belong together.
_LOADING_FAILED = (
    *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, ArithmeticError),
    *(AssertionError, EOFError, pickle.UnpicklingError, SafetensorError),
)


def load_model(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    dtype: torch.dtype | str | None = None,
    allow_pickle: bool = False,
    allow_remote_code: bool = False,
    where: str = "teacher.model",
) -> nn.Module:
    """Load a model in eval mode on the CPU.

    Args:
        name_or_path: A packaged name (``packaged_models()``), one that ``potstill fetch`` brought, a folder, or a name
            on the model hub. A packaged name wins over a folder of the same name; write ``./name`` for the folder.
        revision: Commit, branch or tag on the hub.
        sha256: Expected hash of the weights file. Of a model in several files: of the lines that ``sha256sum *`` of
            the weight files prints.
        dtype: "fp32", "bf16", "fp16" or a torch dtype. None = fp32, whatever the file holds: halves are slow on a CPU
            and drift in training.
        allow_pickle: Accept weights that are pickles. A pickle can run any code while it is read.
        allow_remote_code: Accept and run Python code that comes with the model.
        where: Recipe path for error messages.

    Raises:
        RecipeError: Nothing is there, its class is unknown, it needs a permission that was not given, or more memory
            than there is.
        IntegrityError: A file is damaged, does not have the expected hash, or does not hold all weights.
    """
    target = _dtype(dtype, where)
    folder = find_model(name_or_path, revision=revision, allow_pickle=allow_pickle, where=where)
    if is_packaged(name_or_path) or is_fetchable(name_or_path):
        verify_manifest(folder)
    config = _read_config(folder)
    files = _weight_files(folder, allow_pickle=allow_pickle, where=where)
    if sha256 is not None:
        _check_hash(files, sha256)
    is_pickle = files[0].suffix != ".safetensors"
    for path in [] if is_pickle else files:
        check_safetensors(path)
    refuse_too_large(files, target, where)
    options: dict[str, Any] = {"dtype": target, "use_safetensors": not is_pickle, "output_loading_info": True}
    model_class = _class_of(config, folder, allow_remote_code=allow_remote_code, where=where)
    if allow_remote_code:
        options["trust_remote_code"] = True
    try:
        with without_progress_bars():
            model, info = model_class.from_pretrained(folder, local_files_only=True, **options)
    except PotstillError as error:
        raise error.at(str(folder)) from None
    except _LOADING_FAILED as error:
        raise IntegrityError(
            f"cannot be loaded as {model_class.__name__} ({_first_line(error)})",
            where=str(folder),
            hint="config.json and weights may not belong together.",
        ) from error
    _check_complete(info, folder, model_class.__name__)
    return model.eval()


def load_skeleton(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    allow_remote_code: bool = False,
    where: str = "teacher.model",
) -> nn.Module:
    """Return a model without its weights, from its configuration alone: to look at its modules, not to run it.

    Args:
        name_or_path: As in ``load_model``.
        revision: Commit, branch or tag on the hub.
        allow_remote_code: Accept and run Python code that comes with the model.
        where: Recipe path for error messages.

    Returns:
        The model in eval mode, on the device "meta".

    Raises:
        RecipeError, IntegrityError: As ``load_model`` does.
    """
    folder = find_model(name_or_path, revision=revision, where=where)
    model_class = _class_of(_read_config(folder), folder, allow_remote_code=allow_remote_code, where=where)
    trusted = {"trust_remote_code": True} if allow_remote_code else {}
    try:
        if "auto_map" in _read_config(folder) and allow_remote_code:
            from transformers import AutoConfig

            with torch.device("meta"):
                return model_class.from_config(AutoConfig.from_pretrained(folder, **trusted), **trusted).eval()
        config = model_class.config_class.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            return model_class(config).eval()
    except PotstillError as error:
        raise error.at(str(folder)) from None
    except _LOADING_FAILED as error:
        raise IntegrityError(
            f"cannot be built as {model_class.__name__} ({_first_line(error)})", where=str(folder / "config.json")
        ) from error


def weight_files(
    name_or_path: str | Path, *, revision: str | None = None, allow_pickle: bool = False, where: str = "teacher.model"
) -> list[Path]:
    """Return the files that ``load_model`` would read the weights from."""
    folder = find_model(name_or_path, revision=revision, allow_pickle=allow_pickle, where=where)
    return _weight_files(folder, allow_pickle=allow_pickle, where=where)


def hash_weights(files: list[Path]) -> str:
    """Return the SHA-256 of a weight file; of several files that of the lines ``sha256sum *`` prints for them."""
    if len(files) == 1:
        return file_sha256(files[0])
    lines = "".join(f"{file_sha256(path)}  {path.name}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def packaged_models() -> dict[str, Path]:
    """Return the models that come with the package or a plugin: name -> folder."""
    found = {path.parent.name: path.parent for path in sorted(WEIGHTS.glob(f"*/{MANIFEST}"))}
    return found | {name: Path(PACKAGED.get(name)) for name in PACKAGED}


def is_packaged(name_or_path: str | Path) -> bool:
    """True if the name is that of a packaged model."""
    return isinstance(name_or_path, str) and name_or_path in packaged_models()


def is_fetchable(name_or_path: str | Path) -> bool:
    """True if the name is that of a model which ``potstill fetch`` brings."""
    return isinstance(name_or_path, str) and name_or_path in FETCHABLE


def find_model(
    name_or_path: str | Path, *, revision: str | None = None, allow_pickle: bool = False, where: str = "teacher.model"
) -> Path:
    """Return the folder of a model, downloading it if it is a name on the hub."""
    name = str(name_or_path)
    if is_packaged(name_or_path):
        return packaged_models()[name]
    if is_fetchable(name_or_path):
        folder = fetched_folder(name)
        if not (folder / MANIFEST).is_file():
            raise RecipeError(
                f'"{name}" was not fetched yet', where=where, got=str(folder), hint=f"Run once: potstill fetch {name}"
            )
        return folder
    try:
        path = Path(name).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long for a path, a home that does not exist, a null
        raise RecipeError("is no path", where=where, got=name, hint=f"{_first_line(error)[:80]}.") from error
    if is_file:
        raise RecipeError(
            "is a file",
            where=where,
            expected="the folder with config.json",
            got=name,
            hint=_GGUF if path.suffix.lower() == ".gguf" else f"Name {path.parent}.",
        )
    if is_folder:
        return path
    if isinstance(name_or_path, Path) or not _HUB_NAME.match(name) or name.startswith("."):
        raise RecipeError(
            "there is no such folder", where=where, got=name, hint=f"Packaged models: {', '.join(packaged_models())}."
        )
    return _download(name, revision, allow_pickle, where)


def verify_manifest(folder: Path) -> None:
    """Check every file of a packaged model against its ``MANIFEST.json``.

    Raises:
        IntegrityError: Names the file, the hash it should have and the one it has.
    """
    path = folder / MANIFEST
    files = _read_json(path).get("files")
    if not isinstance(files, dict) or not files:
        raise IntegrityError("the manifest lists no file", where=str(path))
    for name, expected in files.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise IntegrityError("the manifest points outside its folder", where=str(path), got=name)
        _compare(folder / name, expected)
    # A file that is not vouched for must not decide what is loaded.
    for extra in sorted(p.name for p in folder.iterdir() if p.suffix in (".json", ".safetensors", *_PICKLES)):
        if extra != MANIFEST and extra not in files:
            raise IntegrityError("the manifest does not list this file", where=str(folder / extra))


def write_manifest(folder: str | Path) -> Path:
    """Write the ``MANIFEST.json`` of a model folder: the SHA-256 of every file in it."""
    folder = Path(folder)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    path = folder / MANIFEST
    files = {name: file_sha256(folder / name) for name in names}
    path.write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
    return path


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex; a file that cannot be read is an ``IntegrityError``."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise IntegrityError(f"cannot be read ({error.strerror})", where=str(path)) from error
    return digest.hexdigest()


def check_safetensors(path: Path) -> None:
    """Raise ``IntegrityError`` unless the file is whole: a sound header, and exactly the bytes it announces."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        hint = "Fetch or export it again."
        if _starts_with(path, b"version https://git-lfs"):
            hint = 'This is a pointer, not the file: run "git lfs pull".'
        raise IntegrityError(
            f"is no whole safetensors file ({_first_line(error)})", where=str(path), hint=hint
        ) from error
    if not names:
        raise IntegrityError("holds no tensor", where=str(path))


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for what takes a moment; the setting is put back afterwards."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _dtype(dtype: torch.dtype | str | None, where: str) -> torch.dtype:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype or torch.float32
    if dtype not in _DTYPES:
        raise RecipeError(f'unknown dtype "{dtype}"', where=where, hint=suggest(dtype, _DTYPES))
    return _DTYPES[dtype]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"cannot be read as JSON ({_first_line(error)})", where=str(path)) from error
    if not isinstance(value, dict):
        raise IntegrityError("is no JSON object", where=str(path), got=type(value).__name__)
    return value


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        hint = _GGUF if any(folder.glob("*.gguf")) else "Name the folder that save_pretrained or the run wrote."
        raise IntegrityError("the file is missing", where=str(path), hint=hint)
    config = _read_json(path)
    if found := absurd_size(config):
        raise IntegrityError(
            "no model is that large", where=str(path), expected=f"{found[0]} of at most {found[2]}", got=found[1]
        )
    return config


def _weight_files(folder: Path, *, allow_pickle: bool, where: str) -> list[Path]:
    """Return the files that will be read: one, or the shards that an index names."""
    for single, kind in (("model.safetensors", "safetensors"), ("pytorch_model.bin", "pickle")):
        index = folder / f"{single}.index.json"
        files = [folder / single] if (folder / single).is_file() else []
        if not files and index.is_file():
            shards = _read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise IntegrityError("the index names no file", where=str(index))
            names = sorted({str(name) for name in shards.values()})
            outside = next((name for name in names if Path(name).name != name), None)
            if outside is not None:
                raise IntegrityError("the index points outside its folder", where=str(index), got=outside)
            files = [folder / name for name in names]
            missing = next((f for f in files if not f.is_file()), None)
            if missing is not None:
                raise IntegrityError("the file is missing", where=str(missing))
        if files and kind == "pickle" and not allow_pickle:
            break
        if files:
            return files
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickles and not allow_pickle:
        raise RecipeError(
            "the weights are pickles, which can run code",
            where=where,
            expected="model.safetensors",
            got=", ".join(pickles),
            hint=f"If you trust the source, set {_sibling(where, 'allow_pickle')}: true; better, convert them once.",
        )
    raise RecipeError(
        "the folder holds no weights",
        where=where,
        expected="model.safetensors" + (" or pytorch_model.bin" if allow_pickle else ""),
        got=str(folder),
        hint=_GGUF if any(folder.glob("*.gguf")) else None,
    )


def _class_of(config: dict[str, Any], folder: Path, *, allow_remote_code: bool, where: str) -> Any:
    """Return the class that ``config.json`` names: ours, one of transformers, or, if allowed, one of its own code."""
    import transformers

    names = config.get("architectures") or []
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    model_type = config.get("model_type")
    home: Any = importlib.import_module(OWN_TYPES[model_type]) if model_type in OWN_TYPES else transformers
    found = getattr(home, name, None) if name else None
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    remote = config.get("auto_map")
    if isinstance(remote, dict) and remote:
        if not allow_remote_code:
            raise RecipeError(
                f'the class "{name or model_type}" is code that comes with the model',
                where=where,
                hint=f"If you have read it and trust it, set {_sibling(where, 'allow_remote_code')}: true.",
            )
        auto = next((k for k in remote if k.startswith("AutoModel") and hasattr(transformers, k)), "AutoModel")
        return getattr(transformers, auto)
    raise RecipeError(
        f'unknown model class "{name}"' if name else "config.json names no model class",
        where=where,
        expected="architectures: a class of transformers or Potstill",
        got=str(folder / "config.json"),
        hint="A plain nn.Module has to be built in Python; see export_student.",
    )


def _download(name: str, revision: str | None, allow_pickle: bool, where: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py"] + (["*.bin"] if allow_pickle else [])
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        known = suggest(name, [*packaged_models(), *FETCHABLE])
        raise RecipeError(
            f'neither a folder nor reachable on the model hub ("{name}")',
            where=where,
            hint=f"{known} Otherwise check the spelling, the revision, the connection and your access rights "
            f"({type(error).__name__}).",
        ) from error


def _check_hash(files: list[Path], expected: str) -> None:
    if len(files) == 1:
        _compare(files[0], expected)
        return
    found = hash_weights(files)
    if found != expected.lower():
        raise IntegrityError(
            "the weight files are not the expected ones",
            where=str(files[0].parent),
            expected=f"SHA-256 {expected}",
            got=found,
        )


def _compare(path: Path, expected: str) -> None:
    if not isinstance(expected, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", expected):
        raise InputError("is no SHA-256", where="sha256", expected="64 hex digits", got=expected)
    found = file_sha256(path)
    if found != expected.lower():
        raise IntegrityError(
            "is not the expected file",
            where=str(path),
            expected=f"SHA-256 {expected}",
            got=found,
            hint="Fetch or install it again; do not use it if you cannot say why it differs.",
        )


def _check_complete(info: dict[str, Any], folder: Path, name: str) -> None:
    """Refuse weights with holes, which transformers would fill with random numbers."""
    for key in ("missing_keys", "mismatched_keys"):
        keys = sorted(str(k[0] if isinstance(k, tuple) else k) for k in info.get(key) or ())
        if keys:
            raise IntegrityError(
                f"{len(keys)} weights of {name} are {key.split('_')[0]}",
                where=str(folder),
                got=", ".join(keys[:4]),
                hint="config.json and weights do not belong together.",
            )
    unexpected = sorted(info.get("unexpected_keys") or ())
    if unexpected:
        warnings.warn(
            f"{folder}: {len(unexpected)} weights are no part of {name} and were left out: {', '.join(unexpected[:4])}",
            stacklevel=3,
        )


def _sibling(where: str, key: str) -> str:
    return f"{where.rpartition('.')[0]}.{key}" if "." in where else key


def _starts_with(path: Path, start: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(start)) == start
    except OSError:
        return False


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
