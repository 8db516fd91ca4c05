"""A student that exists already: a folder or a hub name."""

from __future__ import annotations

from torch import nn

from potstill.models.load import load_model
from potstill.students.base import STUDENTS, StudentRecord, count_parameters
from potstill.students.configs import student_dtype


@STUDENTS.register("pretrained")
def build_pretrained_student(
    teacher: nn.Module | None, model: str, *, revision: str | None = None, sha256: str | None = None
) -> tuple[nn.Module, StudentRecord]:
    """Load a student from safetensors weights; see ``load_model`` for what is refused.

    Args:
        teacher: Only recorded; may be None.
        model: Folder or hub name.
        revision: Branch, tag or commit on the hub.
        sha256: Expected hash of the weights file.

    Returns:
        The student in train mode, in fp32 whatever the file holds, all parameters trainable; and its record.

    Raises:
        InputError: if there is no such model or class.
        IntegrityError: if the weights are not safetensors, damaged or incomplete.
    """
    student = load_model(model, revision=revision, sha256=sha256, where="model")
    student = student.to(student_dtype(student)).train()
    return student, StudentRecord(
        builder="pretrained",
        arguments={"model": model, "revision": revision, "sha256": sha256},
        student_class=type(student).__name__,
        teacher_class=None if teacher is None else type(teacher).__name__,
        parameters=count_parameters(student),
        teacher_parameters=None if teacher is None else count_parameters(teacher),
        copied=list(student.state_dict()),
    )
