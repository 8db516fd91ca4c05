"""Reading and changing configurations by dotted path, and making a model from one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from potstill.errors import InputError, PotstillError, RecipeError, suggest
from potstill.models.sizes import absurd_size, memory_bytes


def read_field(config: Any, path: str) -> Any:
    """Return the value at a dotted path of a configuration, None if it or a part of the way is absent."""
    for name in path.split("."):
        config = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return config


def changed_config(config: Any, changes: Mapping[str, Any], where: str | None = None) -> Any:
    """Return a copy of a configuration with some fields changed; the original is left as it was.

    Args:
        config: A ``PreTrainedConfig``.
        changes: New values by dotted path (``text_config.num_hidden_layers``). Only fields that exist can be changed.
        where: Recipe path, for messages.

    Returns:
        A new configuration of the same class, checked as its class checks one on loading.

    Raises:
        RecipeError: if a field does not exist.
        InputError: if the class refuses the values, with its reason.
    """
    new = copy.deepcopy(config)
    for path, value in changes.items():
        *way, last = path.split(".")
        here = new
        for name in way:
            if not hasattr(here, name):
                raise _unknown_field(new, path, where)
            here = getattr(here, name)
        if last not in _fields(here):
            raise _unknown_field(new, path, where)
        try:
            if isinstance(here, dict):
                here[last] = value
            else:
                setattr(here, last, value)
        except Exception as error:  # configurations of transformers check types on assignment, with errors of their own
            raise InputError(f'the value of "{path}" is refused: {one_line(error)}', where=where or path) from error
    return _checked(new, where)


def flatten(changes: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Turn nested overrides into dotted paths; a mapping that is itself the value of a field stays whole."""
    flat: dict[str, Any] = {}
    for name, value in changes.items():
        inner = read_field(config, name)
        if isinstance(value, Mapping) and hasattr(inner, "to_dict"):
            flat |= {f"{name}.{path}": v for path, v in flatten(value, inner).items()}
        else:
            flat[name] = value
    return flat


def new_model(cls: type[nn.Module], config: Any, seed: int, dtype: torch.dtype, where: str | None = None) -> nn.Module:
    """Make a model from a configuration with its own random start, on the CPU.

    The global random generator is left as it was, and the same seed gives the same weights.

    Raises:
        InputError: if the class cannot be built from the configuration, with its reason.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError("not a seed", where="seed", expected="an integer", got=seed)
    refuse_absurd(config.to_dict(), where)
    try:
        _refuse_without_memory(cls, config, dtype, where)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reseeds accelerators for good
            return cls(config).to(dtype)
    except PotstillError:
        raise
    except Exception as error:  # whatever a class makes of sizes that do not fit, the values are the cause
        raise InputError(f"{cls.__name__} cannot be built with these sizes: {one_line(error)}", where=where) from error


def refuse_absurd(fields: Mapping[str, Any], where: str | None = None) -> None:
    """Refuse numbers of layers, experts or classes beyond reason, before something of that length is built."""
    if found := absurd_size(fields):
        path, value, limit = found
        place = f"{where}.{path}" if where else path
        raise InputError("no model is that large", where=place, expected=f"at most {limit}", got=value)


def _refuse_without_memory(cls: type[nn.Module], config: Any, dtype: torch.dtype, where: str | None) -> None:
    """Build the model without its numbers first: asking for more memory than there is can end the whole process."""
    memory = memory_bytes()
    if memory is None:
        return
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            shell = cls(config)
        except (NotImplementedError, RuntimeError):  # a constructor that looks at its numbers
            return
    wanted = sum(p.numel() for p in shell.parameters()) * torch.empty((), dtype=dtype).element_size()
    if wanted > memory:
        raise InputError(
            f"the weights alone would take {wanted / 2**30:,.0f} GiB",
            where=where,
            expected=f"at most the {memory / 2**30:,.0f} GiB of this machine",
        )


def one_line(error: Exception) -> str:
    """The reason another library gives, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def student_dtype(teacher: nn.Module) -> torch.dtype:
    """fp32, or float64 for a float64 teacher: half-precision weights lose small updates, so no student starts so."""
    found = next((p.dtype for p in teacher.parameters() if p.is_floating_point()), torch.float32)
    return torch.promote_types(found, torch.float32)


def config_of(teacher: nn.Module) -> Any:
    """Return the configuration a student of the same class can be built from."""
    config = getattr(teacher, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        raise InputError(
            f"{type(teacher).__name__} has no configuration to derive a student from",
            expected="a model of transformers or of Potstill",
            hint="For any other module, build the student yourself and pass it in.",
        )
    return config


def _fields(config: Any) -> set[str]:
    if isinstance(config, Mapping):
        return set(config)
    return set(config.to_dict()) | set(getattr(config, "attribute_map", {})) if hasattr(config, "to_dict") else set()


def _unknown_field(config: Any, path: str, where: str | None) -> RecipeError:
    way, _, last = path.rpartition(".")
    here = read_field(config, way) if way else config
    known = _fields(here) if here is not None else _fields(config)
    place = f"{type(config).__name__}.{way}" if way else type(config).__name__
    return RecipeError(f'{place} has no field "{last if here is not None else path}"', where=where or path,
                       hint=suggest(last, known))  # fmt: skip


def _checked(config: Any, where: str | None) -> Any:
    try:
        return type(config).from_dict(config.to_dict())
    except PotstillError:
        raise
    except Exception as error:  # each configuration class has its own errors; all mean a value was refused
        raise InputError(f"{type(config).__name__} refuses these sizes: {one_line(error)}", where=where) from error
