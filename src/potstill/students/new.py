"""A model from scratch, made for the data: how teachers begin."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from potstill.errors import InputError, PotstillError, RecipeError, suggest
from potstill.models.load import load_model
from potstill.students.base import STUDENTS, StudentRecord, count_parameters
from potstill.students.configs import new_model, one_line, refuse_absurd
from potstill.students.copying import Copied, copy_tensors

# Families of our own: where they are, their configuration and their model.
_OWN = {
    "coca": ("potstill.models.coca", "CocaConfig", "CocaModel"),
    "novel_classes": ("potstill.models.novel_classes", "NovelClassConfig", "NovelClassModel"),
    "vl_t5": ("potstill.models.vl_t5", "VLT5Config", "VLT5ForConditionalGeneration"),
}


@STUDENTS.register("new")
def build_new_student(
    teacher: nn.Module | None,
    *,
    family: str = "coca",
    architecture: str | None = None,
    fields: Mapping[str, Any] | None = None,
    scale: Mapping[str, float] | None = None,
    start: str | None = None,
    text_model: str | None = None,
    data_fields: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[nn.Module, StudentRecord]:
    """Build a model of any family from its configuration, with a random start.

    Args:
        teacher: Not used.
        family: "coca", "novel_classes", "vl_t5", or a ``model_type`` of transformers.
        architecture: Which of the family's model classes, such as "BlipForQuestionAnswering"; None = its plain model.
        fields: Fields of its configuration, nested where the configuration is: ``{text_config: {hidden_size: 96}}``.
        scale: Parameters whose random start is multiplied, by path: ``{vision_model.embeddings.position_embedding: 7}``
            for a configuration that has one width of the start for all weights.
        start: A model, by packaged name, folder or hub name, whose tensors of the same name and shape are copied: the
            image tower of a model for another task, say. None = all is random.
        text_model: For "vl_t5": folder or hub name of a T5 ("t5-base") that its text part starts from; ``fields`` are
            then those of the visual part. Its tokenizer goes with it: data: {tokenizer: t5-base}.
        data_fields: Fields the data dictates (vocabulary, labels, picture size); the run fills them in, in the parts
            of a nested configuration that have them. A decoder that ends its texts with a separator, as those of the
            BERT line do, gets the data's end-of-text token for it.
        seed: Seed of the start; the global generator is left as it was.

    Returns:
        The model in fp32, and its record.

    Raises:
        RecipeError: An unknown family, class, field or parameter, or a field that the data has already set otherwise.
        InputError: The configuration refuses a value, or the model to start from has nothing in common with this one.
    """
    if fields is not None and not isinstance(fields, Mapping):
        raise RecipeError("not a table of fields", where="fields", expected="{field: value}", got=fields)
    if not isinstance(family, str):
        raise RecipeError("not a name", where="family", got=family)
    fields, data_fields = dict(fields or {}), dict(data_fields or {})
    refuse_absurd(fields, "fields")
    if text_model is not None:
        for where, given in (("architecture", architecture), ("scale", scale), ("start", start)):
            if given is not None:
                raise RecipeError('does not go together with "text_model"', where=where)
        _merged(fields, data_fields, "fields")
        return _from_t5(family, text_model, fields, data_fields, seed)
    if family in _OWN:
        home = importlib.import_module(_OWN[family][0])
        config_class, plain = (getattr(home, name) for name in _OWN[family][1:])
        values, known = _merged(fields, data_fields, "fields"), {plain.__name__: plain}
    else:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if family not in CONFIG_MAPPING_NAMES:
            known = [*_OWN, *CONFIG_MAPPING_NAMES]
            raise RecipeError(f'unknown family "{family}"', where="family", hint=suggest(family, known))
        default = AutoConfig.for_model(family)
        config_class, known = type(default), _classes_of(type(default))
        values = _placed_fields(default, fields, data_fields)
        plain = AutoModel._model_mapping.get(config_class, None)
    if architecture is not None and architecture not in known:
        hint = suggest(str(architecture), known)
        raise RecipeError(f'{family} has no model class "{architecture}"', where="architecture", hint=hint)
    model_class = plain if architecture is None else known[architecture]
    if model_class is None:
        raise RecipeError(f"{family} has no plain model", where="architecture", expected=", ".join(sorted(known)))
    try:
        config = config_class(**values)
    except PotstillError:
        raise
    except Exception as error:  # each configuration class has its own errors; all mean that a value was refused
        raise InputError(f"{config_class.__name__} refuses these fields: {one_line(error)}", where="fields") from error
    student = new_model(model_class, config, seed, torch.float32, "fields")
    _scale(student, scale)
    done = Copied(fresh=list(student.state_dict()))
    if start is not None:
        done = copy_tensors(student, load_model(start, where="start"))
        if not done.copied:
            raise InputError(f"{type(student).__name__} has no tensor in common with it", where="start", got=start)
    return student, StudentRecord(
        builder="new",
        arguments={
            "family": family,
            "architecture": architecture,
            "fields": fields,
            "scale": scale,
            "start": start,
            "seed": seed,
        },
        student_class=type(student).__name__,
        teacher_class=None,
        parameters=count_parameters(student),
        teacher_parameters=None,
        **dataclasses.asdict(done),
    )


@torch.no_grad()
def _scale(student: nn.Module, scale: Mapping[str, float] | None) -> None:
    if scale is not None and not isinstance(scale, Mapping):
        raise RecipeError("not a table of parameters", where="scale", expected="{parameter: factor}", got=scale)
    parameters = dict(student.named_parameters())
    for path, factor in (scale or {}).items():
        if path not in parameters:
            raise RecipeError("no such parameter", where=f"scale.{path}", hint=suggest(str(path), parameters))
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor <= 1e6:
            raise RecipeError("no factor", where=f"scale.{path}", expected="0 to 1e6", got=factor)
        parameters[path].mul_(factor)


def _classes_of(config_class: type) -> dict[str, type[nn.Module]]:
    """Return the model classes of transformers that are built from this configuration, by name."""
    home = importlib.import_module(config_class.__module__.replace(".configuration_", ".modeling_"))
    return {
        name: found
        for name, found in vars(home).items()
        if isinstance(found, type)
        and issubclass(found, PreTrainedModel)
        and found.config_class is config_class
        and found.forward is not PreTrainedModel.forward  # the common base of a family has none
    }


def _merged(fields: Mapping[str, Any], data_fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields with those of the data, which must not differ."""
    for key, value in data_fields.items():
        if fields.get(key, value) != value:
            raise RecipeError("the data says otherwise", where=f"{where}.{key}", expected=repr(value), got=fields[key])
    return {**fields, **data_fields}


def _placed_fields(default: Any, fields: Mapping[str, Any], data_fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with each field of the data where the configuration has it, at the top or in its parts."""
    parts = [name for name in default.sub_configs if hasattr(getattr(default, name, None), "to_dict")]
    _refuse_unknown(default, fields, "fields")
    inner, homeless = {}, dict(data_fields)
    for name in parts:
        given, part, where = fields.get(name) or {}, getattr(default, name), f"fields.{name}"
        if not isinstance(given, Mapping):
            raise RecipeError("not a table of fields", where=where, expected="{field: value}", got=given)
        _refuse_unknown(part, given, where)
        dictated = {key: value for key, value in data_fields.items() if hasattr(part, key)}
        for key in dictated:
            homeless.pop(key, None)
        if hasattr(part, "sep_token_id") and "eos_token_id" in data_fields:
            given = {"sep_token_id": data_fields["eos_token_id"], **given}
        inner[name] = _merged(given, dictated, where)
    at_top = {k: v for k, v in data_fields.items() if k in homeless or hasattr(default, k)}
    return {**_merged(fields, at_top, "fields"), **inner}


def _refuse_unknown(config: Any, fields: Mapping[str, Any], where: str) -> None:
    """Refuse what the configuration would keep without ever reading it."""
    for key in fields:
        if not hasattr(config, str(key)):
            hint = suggest(str(key), config.to_dict())
            raise RecipeError(f"{type(config).__name__} has no such field", where=f"{where}.{key}", hint=hint)


def _from_t5(
    family: str, text_model: str, fields: dict[str, Any], data_fields: dict[str, Any], seed: int
) -> tuple[nn.Module, StudentRecord]:
    from potstill.models.vl_t5 import from_t5

    if family != "vl_t5":
        raise RecipeError("only a VL-T5 has a text part to start from", where="text_model", expected='family: "vl_t5"')
    student = from_t5(text_model, seed=seed, **{**fields, **data_fields}).train()
    return student, StudentRecord(
        builder="new",
        arguments={"family": family, "fields": fields, "text_model": text_model, "seed": seed},
        student_class=type(student).__name__,
        teacher_class=None,
        parameters=count_parameters(student),
        teacher_parameters=None,
        copied=[name for name in student.state_dict() if not name.startswith("visual.")],
        fresh=[name for name in student.state_dict() if name.startswith("visual.")],
    )
