"""Students of vision-language models in a run: the four terms of ``vlm_ood_losses``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from potstill.errors import InputError, RecipeError, suggest
from potstill.losses import caption_contrastive_loss, vlm_align_loss, vlm_cls_loss, vlm_contrast_loss, vlm_mse_loss
from potstill.objectives.base import (
    IGNORE_INDEX,
    OBJECTIVES,
    Objective,
    Seen,
    Where,
    check_output,
    outputs_and_taps,
    read_output,
)
from potstill.taps import Signal

TERMS = ("cls", "vlalign", "mse", "cst")


@OBJECTIVES.register("vlm_ood")
class VlmOodObjective(Objective):
    """Teach an image encoder a vision-language teacher's image space (arXiv 2307.03135); see ``vlm_ood_losses``.

    The terms are added without weights. Batch-coupled by the term "cst": its negatives are those of the micro-batch.

    Args:
        name: Its name in logs.
        on: The student's image feature, ``[N, D_s]``, an output or a tap.
        teacher_on: The teacher's image feature, ``[N, D]``.
        labels: Batch key of the classes; rows with -100 have none and count in "mse" and "cst" alone.
        text: One feature for each class, ``[C, D]``: a parameter of the teacher by path ("classifier.weight"), or a
            ``.safetensors`` file with a tensor "text".
        terms: Which of cls, vlalign, mse and cst.
        k, tau, filter_misaligned, contrastive: As in ``vlm_ood_losses``.
        captions: Batch key of a text feature for each image, ``[N, D]``, for the caption term; None = without.
        caption_tau: Its temperature.
        head: "auto" = a linear map to the teacher's width is trained beside the student where widths differ, and
            dropped at export; "linear" = always; "none" = never, the widths must agree. A student made by the builder
            shared_classifier has its own: read what that returns.
        weight: Factor in the loss.
    """

    loss_name = "vlm_ood_losses"
    batch_coupled = True

    def __init__(
        self,
        name: str,
        on: str,
        teacher_on: str,
        labels: str,
        *,
        text: str,
        terms: Sequence[str] = TERMS,
        k: int = 256,
        tau: float = 0.07,
        filter_misaligned: bool = True,
        contrastive: str = "bidirectional",
        captions: str | None = None,
        caption_tau: float = 1.0,
        head: str = "auto",
        weight: float = 1.0,
    ):
        super().__init__(name, weight=weight)
        for term in terms:
            if term not in TERMS:
                raise RecipeError(f'unknown term "{term}"', where=f"{name}.terms", hint=suggest(str(term), TERMS))
        if not terms or isinstance(terms, str) or len(set(terms)) < len(terms):
            raise RecipeError("is no choice of terms", where=f"{name}.terms", expected=", ".join(TERMS), got=terms)
        if head not in ("auto", "linear", "none"):
            raise RecipeError("unknown head", where=f"{name}.head", expected="auto, linear or none", got=head)
        for field, output in (("on", on), ("teacher_on", teacher_on)):
            check_output(output, f"{name}.{field}")
        self.on, self.teacher_on, self.labels, self.head = on, teacher_on, labels, head
        self.terms, self.captions, self.caption_tau = tuple(terms), captions, caption_tau
        self.k, self.tau, self.filter_misaligned, self.contrastive = k, tau, filter_misaligned, contrastive
        self.student_outputs, self.student_taps = outputs_and_taps(on)
        self.teacher_outputs, self.teacher_taps = outputs_and_taps(teacher_on)
        self.text = text
        self._text: Tensor | None = _read(text, f"{name}.text") if text.endswith(".safetensors") else None
        self.reads_weights = self._text is None

    def meet(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        """Take the features of the classes from the teacher, unless they came from a file."""
        if self._text is not None:
            return
        tensors = teachers[self.of[0]].state_dict()
        if self.text not in tensors:
            raise RecipeError(
                "the teacher has no such parameter", where=f"{self.name}.text", hint=suggest(self.text, tensors)
            )
        self._text = tensors[self.text].detach().clone()

    def build_part(self, student: Signal, teacher: Signal | None) -> nn.Module:
        """Return the features of the classes as a buffer, and the head if there is one."""
        if self._text is None:
            raise InputError("does not know the classes yet", where=self.name, hint="Call meet(student, teachers).")
        width, wanted = read_output(student, self.on).shape[-1], read_output(teacher, self.teacher_on).shape[-1]
        if self._text.ndim != 2 or self._text.shape[1] != wanted:
            raise RecipeError(
                "features of classes and images have different widths",
                where=f"{self.name}.text",
                expected=f"[classes, {wanted}]",
                got=list(self._text.shape),
            )
        part = nn.Module()
        part.register_buffer("text", self._text.float())
        has_head = self.head == "linear" or (self.head == "auto" and width != wanted)
        part.head = nn.Linear(width, wanted) if has_head else nn.Identity()
        return part

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Count the rows."""
        return Where().count(batch)

    def total(self, seen: Seen, part: nn.Module | None) -> Tensor:
        """Return the mean of every term, added up and weighed by the rows of the micro-batch."""
        student = part.head(read_output(seen.student, self.on))
        teacher, labels = read_output(seen.teacher, self.teacher_on), seen.batch[self.labels]
        known = labels != IGNORE_INDEX
        total = student.float().sum() * 0.0
        if "cls" in self.terms:
            total = total + vlm_cls_loss(student, part.text, labels, tau=self.tau, mask=known)
        if "vlalign" in self.terms:
            options = {"k": self.k, "tau": self.tau, "filter_misaligned": self.filter_misaligned}
            total = total + vlm_align_loss(student, teacher, part.text, labels, mask=known, **options)
        if "mse" in self.terms:
            total = total + vlm_mse_loss(student, teacher)
        if "cst" in self.terms:
            total = total + vlm_contrast_loss(student, teacher, tau=self.tau, contrastive=self.contrastive)
        if self.captions is not None:
            if self.captions not in seen.batch:
                raise RecipeError(f'the batch has no "{self.captions}"', where=f"{self.name}.captions")
            total = total + caption_contrastive_loss(student, seen.batch[self.captions], labels, self.caption_tau)
        return total * self.count(seen.batch).to(total)


def _read(path: str, where: str) -> Tensor:
    file = Path(path).expanduser()
    if not file.is_file():
        raise RecipeError("there is no such file", where=where, got=path)
    try:
        with safe_open(file, framework="pt") as opened:
            if "text" not in opened.keys():  # noqa: SIM118 - a file of tensors is no mapping
                raise RecipeError('the file holds no tensor "text"', where=where, hint=suggest("text", opened.keys()))
            return opened.get_tensor("text")
    except SafetensorError as error:
        raise RecipeError(f"the file cannot be read ({error})", where=where, got=path) from error
