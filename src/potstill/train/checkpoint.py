"""Checkpoints that are either complete or refused: a manifest of sizes and hashes, written last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from potstill.errors import IntegrityError
from potstill.train.sharding import is_sharded, load_whole_state, whole_state

MANIFEST = "manifest.json"
STUDENT, PARTS, POLICY = "student.safetensors", "parts.safetensors", "policy.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def write_text(path: Path, text: str) -> None:
    """Write text the same way; where the disk refuses, the old file stays and nothing else does."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_json(path: Path, hint: str | None = None) -> Any:
    """Read JSON; a missing or damaged file is an ``IntegrityError`` that names it, and the next step if given."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise IntegrityError("the file is missing", where=str(path), hint=hint) from error
    except (ValueError, OSError, RecursionError) as error:
        raise IntegrityError(f"cannot be read as JSON ({error})", where=str(path), hint=hint) from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file) -> str:
    # hashlib.file_digest is new in Python 3.11; 3.10 is supported.
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def seal(folder: Path) -> None:
    """Flush every file of a checkpoint to disk and write the manifest last."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_json(folder / MANIFEST, {"version": 1, "files": files})


def verify(folder: Path) -> None:
    """Raise ``IntegrityError`` naming the first file that is missing, has another size or other bytes."""
    if folder.is_symlink() or (folder / MANIFEST).is_symlink():
        raise IntegrityError("a checkpoint holds no links and is none", where=str(folder))
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise IntegrityError("the manifest has no list of files", where=str(folder / MANIFEST))
    for name, entry in files.items():
        path = folder / name
        if "\0" in name or path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            raise IntegrityError("a checkpoint holds no links", where=str(path))
        if not path.is_file():
            raise IntegrityError("the file is missing", where=str(path))
        wanted = entry if isinstance(entry, dict) else {}
        if path.stat().st_size != wanted.get("bytes") or _hash_of(path) != wanted.get("sha256"):
            raise IntegrityError("the file changed since it was written", where=str(path))
    # What the manifest does not vouch for must not be loaded: the Trainer takes what it finds by name.
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise IntegrityError("a checkpoint holds no links", where=str(path))
        if not path.is_dir() and path.name != MANIFEST and path.relative_to(folder).as_posix() not in files:
            raise IntegrityError("the manifest does not list this file", where=str(path))


def _hash_of(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise IntegrityError(f"cannot be read ({error.strerror})", where=str(path)) from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first, complete or not."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _NAME.match(p.name)) and p.is_dir()]
    return [path for _, path in sorted(found)]


def newest_valid(folder: Path) -> tuple[Path | None, list[IntegrityError]]:
    """Return the newest checkpoint whose manifest holds, and why newer ones were refused."""
    refused = []
    for path in reversed(list_checkpoints(folder)):
        try:
            verify(path)
            return path, refused
        except IntegrityError as error:
            refused.append(error)
    return None, refused


def keep_newest(folder: Path, count: int, *, written: Path | None = None) -> None:
    """Remove all but the newest ``count`` checkpoints; 0 keeps all.

    Those after the one just written do not count: the run passed over them, damaged, when it was resumed.
    """
    found = list_checkpoints(folder)
    if written in found:
        found = found[: found.index(written) + 1]
    for path in found[:-count] if count else []:
        shutil.rmtree(path, ignore_errors=True)


def save_weights(folder: Path, student: nn.Module, parts: nn.Module, *, is_writer: bool = True) -> None:
    """Write student and parts as two safetensors files; shared tensors are stored once.

    If they are sharded, all processes call this, with ``is_writer`` true on one.
    """
    for path, module in ((folder / STUDENT, student), (folder / PARTS, parts)):
        if path.name == PARTS and not any(True for _ in parts.state_dict()):
            continue
        if is_sharded(module):
            state = whole_state(module)
            if is_writer:
                save_file(state, str(path), metadata={"format": "pt"})
        elif is_writer:
            save_model(module, str(path), metadata={"format": "pt"})


def load_weights(folder: Path, student: nn.Module, parts: nn.Module) -> None:
    """Load both strictly: a missing, unexpected or wrongly shaped tensor is an ``IntegrityError``."""
    pairs = [(folder / STUDENT, student)]
    if any(True for _ in parts.state_dict()):
        pairs.append((folder / PARTS, parts))
    for path, module in pairs:
        if not path.is_file():
            raise IntegrityError("the file is missing", where=str(path))
        try:
            if is_sharded(module):
                load_whole_state(module, load_file(str(path)))
            else:
                load_model(module, str(path), strict=True)
        except (RuntimeError, SafetensorError, OSError) as error:
            raise IntegrityError(
                f"the weights do not fit this recipe ({str(error).splitlines()[0]})",
                where=str(path),
                hint="Resume with the recipe the run was started with.",
            ) from error
