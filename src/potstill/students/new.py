"""A model from scratch, made for the data: how teachers begin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from potstill.errors import InputError, PotstillError, RecipeError, suggest
from potstill.students.base import STUDENTS, StudentRecord, count_parameters
from potstill.students.configs import new_model, one_line, refuse_absurd


@STUDENTS.register("new")
def build_new_student(
    teacher: nn.Module | None,
    *,
    family: str = "coca",
    fields: Mapping[str, Any] | None = None,
    text_model: str | None = None,
    data_fields: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[nn.Module, StudentRecord]:
    """Build a randomly initialised model.

    Args:
        teacher: Not used: nothing is copied.
        family: "coca", "vl_t5", or a ``model_type`` of transformers.
        fields: Fields of its configuration.
        text_model: For "vl_t5": folder or hub name of a T5 ("t5-base") that its text part starts from; ``fields`` are
            then those of the visual part. Its tokenizer goes with it: data: {tokenizer: t5-base}.
        data_fields: Fields the data dictates (vocabulary, labels, picture size); the run fills them in.
        seed: Seed of the start; the global generator is left as it was.

    Returns:
        The model in fp32, and its record.

    Raises:
        RecipeError: An unknown family, or a field that the data has already set otherwise.
        InputError: The configuration refuses a value.
    """
    if fields is not None and not isinstance(fields, Mapping):
        raise RecipeError("not a table of fields", where="fields", expected="{field: value}", got=fields)
    if not isinstance(family, str):
        raise RecipeError("not a name", where="family", got=family)
    fields, data_fields = dict(fields or {}), dict(data_fields or {})
    refuse_absurd(fields, "fields")
    for key, value in data_fields.items():
        if fields.get(key, value) != value:
            raise RecipeError("the data says otherwise", where=f"fields.{key}", expected=repr(value), got=fields[key])
    if text_model is not None:
        return _from_t5(family, text_model, fields, data_fields, seed)
    if family == "coca":
        from potstill.models.coca import CocaConfig, CocaModel

        config_class, model_class = CocaConfig, CocaModel
    elif family == "vl_t5":
        from potstill.models.vl_t5 import VLT5Config, VLT5ForConditionalGeneration

        config_class, model_class = VLT5Config, VLT5ForConditionalGeneration
    else:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if family not in CONFIG_MAPPING_NAMES:
            raise RecipeError(
                f'unknown family "{family}"',
                where="family",
                hint=suggest(family, ["coca", "vl_t5", *CONFIG_MAPPING_NAMES]),
            )
        config_class = type(AutoConfig.for_model(family))
        model_class = AutoModel._model_mapping[config_class]
    try:
        config = config_class(**{**fields, **data_fields})
    except PotstillError:
        raise
    except Exception as error:  # each configuration class has its own errors; all mean that a value was refused
        raise InputError(f"{config_class.__name__} refuses these fields: {one_line(error)}", where="fields") from error
    student = new_model(model_class, config, seed, torch.float32, "fields")
    return student, StudentRecord(
        builder="new",
        arguments={"family": family, "fields": fields, "seed": seed},
        student_class=type(student).__name__,
        teacher_class=None,
        parameters=count_parameters(student),
        teacher_parameters=None,
        fresh=list(student.state_dict()),
    )


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
