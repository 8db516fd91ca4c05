"""A student that exists already: a folder or a hub name."""

from __future__ import annotations

from torch import nn

from potstill.models.loading import load_pretrained
from potstill.students.base import STUDENTS, StudentRecord, count_parameters
from potstill.students.configs import student_dtype


@STUDENTS.register("pretrained")
def build_pretrained_student(
    teacher: nn.Module | None, model: str, *, model_class: str | None = None, revision: str | None = None
) -> tuple[nn.Module, StudentRecord]:
    """Load a student from safetensors weights; see ``load_pretrained`` for what is refused.

    Args:
        teacher: Only recorded; may be None.
        model: Folder or hub name.
        model_class: Class name; by default the one its configuration names.
        revision: Branch, tag or commit on the hub.

    Returns:
        The student in train mode, in fp32 whatever the file holds, all parameters trainable; and its record.

    Raises:
        InputError: if there is no such model or class.
        IntegrityError: if the weights are not safetensors, damaged or incomplete.
    """
    student = load_pretrained(model, model_class=model_class, revision=revision, where="model")
    student = student.to(student_dtype(student)).train()
    return student, StudentRecord(
        builder="pretrained",
        arguments={"model": model, "model_class": model_class, "revision": revision},
        student_class=type(student).__name__,
        teacher_class=None if teacher is None else type(teacher).__name__,
        parameters=count_parameters(student),
        teacher_parameters=None if teacher is None else count_parameters(teacher),
        copied=list(student.state_dict()),
    )
