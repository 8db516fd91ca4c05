"""A student from the teacher's configuration with some fields changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from potstill.errors import RecipeError
from potstill.students.base import STUDENTS, StudentRecord, count_parameters, require_teacher
from potstill.students.configs import changed_config, config_of, flatten, new_model, student_dtype
from potstill.students.copying import Copied, copy_tensors
from potstill.students.depth import copy_generation_config


@STUDENTS.register("config")
def build_config_student(
    teacher: nn.Module, overrides: Mapping[str, Any], *, copy_matching: bool = True, seed: int = 0
) -> tuple[nn.Module, StudentRecord]:
    """Build a student of the teacher's class from its configuration with any fields changed.

    For what ``depth`` and ``width`` do not reach: another patch size, fewer queries, another activation.

    Args:
        teacher: A model with a configuration. Not changed.
        overrides: New values by field, nested or with dotted names.
        copy_matching: Copy every tensor that has the same name and shape in the teacher; the record lists the rest.
            Blocks are copied position by position: use ``depth`` to have them spaced evenly.
        seed: Seed of the random start; the global generator is left as it was.

    Returns:
        The student on the CPU in fp32 (float64 for a float64 teacher), and its record.

    Raises:
        RecipeError: if a field does not exist.
        InputError: if the configuration or the model refuses the values.
    """
    require_teacher(teacher)
    config = config_of(teacher)
    if not isinstance(overrides, Mapping):
        raise RecipeError("not a table of fields", where="overrides", expected="{field: value}", got=overrides)
    new = changed_config(config, flatten(overrides, config), "overrides")
    student = new_model(type(teacher), new, seed, student_dtype(teacher), "overrides")
    done = copy_tensors(student, teacher) if copy_matching else Copied(fresh=list(student.state_dict()))
    copy_generation_config(student, teacher)
    return student, StudentRecord(
        builder="config",
        arguments={"overrides": dict(overrides), "copy_matching": copy_matching, "seed": seed},
        student_class=type(student).__name__,
        teacher_class=type(teacher).__name__,
        parameters=count_parameters(student),
        teacher_parameters=count_parameters(teacher),
        **dataclasses.asdict(done),
    )
