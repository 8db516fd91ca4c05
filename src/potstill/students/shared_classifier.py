"""A student that keeps the teacher's classifier, frozen, behind a projector of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.errors import InputError, RecipeError, ShapeError
from potstill.students.base import (
    STUDENTS,
    StudentRecord,
    before_export,
    build_inner,
    count_parameters,
    require_teacher,
)

PROJECTORS = ("linear", "conv")


class SharedClassifier(nn.Module):
    """The teacher's classifier behind a projector: W_T P(f) + b_T.

    Weight and bias are buffers: no optimiser, no ``requires_grad_(True)`` on the student can move them.

    Attributes:
        projector: Linear map to the teacher's width, or nothing where it stands before the pooling.
        weight: W_T, ``(K, d_t)``.
        bias: b_T, ``(K,)``, or None.
    """

    def __init__(self, projector: nn.Module, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.projector = projector
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        """Map student features ``(..., d_s)`` to the teacher's classes, ``(..., K)``."""
        return F.linear(self.projector(features), self.weight, self.bias)


class ProjectedPooling(nn.Module):
    """A 1x1 convolution with batch norm to the teacher's width, and the pooling it stands before."""

    def __init__(self, pooling: nn.Module, channels_s: int, channels_t: int):
        super().__init__()
        self.projector = nn.Sequential(
            nn.Conv2d(channels_s, channels_t, kernel_size=1, bias=False), nn.BatchNorm2d(channels_t)
        )
        self.pooling = pooling

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``(n, d_s, H, W)`` to pooled ``(n, d_t, 1, 1)``."""
        return self.pooling(self.projector(maps))


def share_classifier(
    student: nn.Module,
    teacher: nn.Module,
    *,
    projector: str = "linear",
    classifier: str | None = None,
    teacher_classifier: str | None = None,
    pooling: str | None = None,
    directions: bool = False,
) -> nn.Module:
    """Put the teacher's classifier, frozen, in the place of the student's, behind a trainable projector.

    Where labels are wrong or missing the teacher's classifier is knowledge that need not be learned again; the student
    only learns to reach the feature space it reads. Both models must name the same classes in the same order. Not
    useful where the student's features are much narrower than the number of classes.

    Args:
        student: A model that ends in a linear classifier (its own, of any number of classes, is dropped). Changed in
            place.
        teacher: A model that ends in a linear classifier. Not changed.
        projector: "linear", on the pooled features; or "conv", a 1x1 convolution with batch norm before the pooling
            of a convolutional student.
        classifier: Path of the student's classifier; None = its last linear layer.
        teacher_classifier: Path of the teacher's; None = its last linear layer.
        pooling: For "conv": path of the student's global average pooling; None = its last one.
        directions: Keep only the direction of each class's weights, and no bias: the largest logit is then the largest
            cosine, as students of vision-language models are to be read (``vlm_ood_losses``).

    Returns:
        The student; ``merge_classifier`` makes a plain linear layer of what stands there now.

    Raises:
        InputError: unknown projector; a model without linear classifier or, for "conv", without global pooling; a
            path that names something else.
        ShapeError: for "conv": the pooling leaves more than one place.

    Source:
        Classifier sharing of Tang et al., "Distribution Shift Matters for Knowledge Distillation with Webly Collected
        Images", ICCV 2023 (arXiv 2307.11469).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> teacher = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> student = share_classifier(nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3)), teacher)
        >>> student[2].projector, torch.equal(student[2].weight, teacher[2].weight)
        (Linear(in_features=2, out_features=8, bias=True), True)
    """
    if projector not in PROJECTORS:
        raise InputError("unknown projector", where="projector", expected='"linear" or "conv"', got=projector)
    path = _find(student, classifier, nn.Linear, "student", "classifier", "a linear classifier")
    at_teacher = _find(teacher, teacher_classifier, nn.Linear, "teacher", "teacher_classifier", "a linear classifier")
    if not path:
        raise InputError("the student is nothing but a classifier", where="student")
    own, theirs = student.get_submodule(path), teacher.get_submodule(at_teacher)
    like = own.weight
    weight, bias = (F.normalize(theirs.weight, dim=1), None) if directions else (theirs.weight, theirs.bias)
    if projector == "linear":
        shared = SharedClassifier(nn.Linear(own.in_features, theirs.in_features), weight, bias)
    else:
        where = _find(student, pooling, nn.AdaptiveAvgPool2d, "student", "pooling", "a global average pooling")
        pool = student.get_submodule(where)
        if pool.output_size not in (1, (1, 1)):
            raise ShapeError(
                "the pooling is not global", where="pooling", expected="output size 1", got=pool.output_size
            )
        before = ProjectedPooling(pool, own.in_features, theirs.in_features)
        _replace(student, where, before.to(like.device, like.dtype).train(own.training))
        shared = SharedClassifier(nn.Identity(), weight, bias)
    _replace(student, path, shared.to(like.device, like.dtype).train(own.training))
    return student


@torch.no_grad()
def name_classes(student: nn.Module, text: Tensor) -> nn.Module:
    """Give a student of a vision-language model other classes, by the features of their texts.

    Args:
        student: What ``share_classifier`` returned, trained in the teacher's image space. Changed in place.
        text: The teacher's text features of the new classes, ``(C, d_t)``; only their directions are kept.

    Returns:
        The student, whose logits are now of the C new classes.

    Raises:
        InputError: the student has no shared classifier.
        ShapeError: the features are not as wide as the classifier reads.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> teacher = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> student = share_classifier(nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3)), teacher)
        >>> name_classes(student, torch.randn(5, 8))(torch.randn(1, 4)).shape
        torch.Size([1, 5])
    """
    shared = [module for module in student.modules() if isinstance(module, SharedClassifier)]
    if not shared:
        raise InputError("the student has no shared classifier", where="student", hint="Use share_classifier first.")
    width = shared[-1].weight.shape[1]
    if text.ndim != 2 or text.shape[1] != width or not text.is_floating_point():
        raise ShapeError("text features do not fit", where="text", expected=f"(C, {width})", got=list(text.shape))
    shared[-1].weight = F.normalize(text.detach().float(), dim=1).to(shared[-1].weight)
    shared[-1].bias = None
    return student


@before_export
@torch.no_grad()
def merge_classifier(student: nn.Module) -> nn.Module:
    """Make one linear layer of a projector and the classifier behind it, as the student's class had it first.

    Both projectors are linear once trained (pooling is a mean, and batch norm in evaluation a scale and a shift), so
    outputs in evaluation stay the same but for rounding. A student without a shared classifier is left as it is.

    Args:
        student: What ``share_classifier`` returned, trained. Changed in place.

    Returns:
        The student.

    Raises:
        InputError: a projector is missing, or has been replaced by one that is not linear.

    Example:
        >>> from torch import nn
        >>> teacher = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> student = share_classifier(nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3)), teacher)
        >>> merge_classifier(student)[2]
        Linear(in_features=2, out_features=3, bias=True)
    """
    shared = [(path, m) for path, m in student.named_modules() if isinstance(m, SharedClassifier)]
    poolings = [(path, m) for path, m in student.named_modules() if isinstance(m, ProjectedPooling)]
    for path, module in shared:
        if isinstance(module.projector, nn.Linear):
            inner, shift = module.projector.weight, module.projector.bias
        elif isinstance(module.projector, nn.Identity) and len(poolings) == 1:
            at, before = poolings[0]
            inner, shift = _folded(before.projector)
            _replace(student, at, before.pooling)
        else:
            raise InputError("the projector cannot be merged", where=path, got=type(module.projector).__name__)
        weight = module.weight.double() @ inner.double()
        bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
        if shift is not None:
            bias += module.weight.double() @ shift.double()
        if module.bias is not None:
            bias += module.bias.double()
        like = module.weight
        merged = nn.Linear(weight.shape[1], weight.shape[0], device=like.device, dtype=like.dtype)
        merged.weight.copy_(weight)
        merged.bias.copy_(bias)
        _replace(student, path, merged.train(module.training))
    return student


def _folded(projector: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Return matrix and shift of a 1x1 convolution and the batch norm behind it, as they are in evaluation."""
    convolution, norm = projector
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    inner = scale.unsqueeze(1) * convolution.weight.double().flatten(1)
    return inner, norm.bias.double() - scale * norm.running_mean.double()


@STUDENTS.register("shared_classifier")
def build_shared_classifier_student(
    teacher: nn.Module,
    of: Mapping[str, Any],
    *,
    projector: str = "linear",
    classifier: str | None = None,
    teacher_classifier: str | None = None,
    pooling: str | None = None,
    directions: bool = False,
    data_fields: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[nn.Module, StudentRecord]:
    """Build a student by another builder, and give it the teacher's classifier.

    Args:
        teacher: A model that ends in a linear classifier. Not changed.
        of: The other builder and its options: ``{builder: depth, layers: 2}``.
        projector: "linear" or "conv", see ``share_classifier``.
        classifier: Path of the student's classifier; null = its last linear layer.
        teacher_classifier: Path of the teacher's; null = its last linear layer.
        pooling: For "conv": path of the student's global average pooling; null = its last one.
        directions: Keep only the direction of each class's weights, and no bias.
        data_fields: Fields the data dictates; the run fills them in.
        seed: Seed of the student's and the projector's start; the global generator is left as it was.

    Returns:
        The student, and its record.

    Raises:
        RecipeError: the inner builder is unknown or refuses an option.
        InputError: a model without linear classifier; see ``share_classifier``.
    """
    require_teacher(teacher)
    if isinstance(of, Mapping) and of.get("builder") == "shared_classifier":
        raise RecipeError("a classifier is shared once", where="of.builder")
    built, record = build_inner(of, teacher, data_fields, seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reseeds accelerators for good
        share_classifier(
            built,
            teacher,
            projector=projector,
            classifier=classifier,
            teacher_classifier=teacher_classifier,
            pooling=pooling,
            directions=directions,
        )
    kept = set(built.state_dict())
    named = {side: [name for name in getattr(record, side) if name in kept] for side in ("copied", "sliced", "fresh")}
    known = {name for names in named.values() for name in names}
    shared = [path for path, module in built.named_modules() if isinstance(module, SharedClassifier)]
    frozen = [name for name in sorted(kept - known) if name.rpartition(".")[0] in shared]
    named["copied"] += frozen
    named["fresh"] += sorted(kept - known - set(frozen))
    return built, dataclasses.replace(
        record,
        builder="shared_classifier",
        arguments={"of": dict(of), "projector": projector, "directions": directions, "seed": seed},
        parameters=count_parameters(built),
        teacher_parameters=count_parameters(teacher),
        teacher_class=type(teacher).__name__,
        **named,
    )


def _find(model: nn.Module, path: str | None, kind: type[nn.Module], side: str, field: str, what: str) -> str:
    """Return the path of a layer of this kind: the one named, or the last there is."""
    if path is None:
        found = [name for name, module in model.named_modules() if isinstance(module, kind)]
        if not found:
            raise InputError(f"the {side} has no {what.partition(' ')[2]}", where=side, got=type(model).__name__)
        return found[-1]
    modules = dict(model.named_modules())
    if not isinstance(modules.get(path), kind):
        got = type(modules[path]).__name__ if path in modules else "nothing there"
        raise InputError(f'"{path}" of the {side} is not {what}', where=field, expected=kind.__name__, got=got)
    return path


def _replace(model: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, new)
