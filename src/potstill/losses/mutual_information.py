"""MI-α: a lower bound on the mutual information between the features of teacher and student over a batch."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.errors import InputError, ShapeError
from potstill.losses._common import (
    blank,
    check_choice,
    check_mask,
    check_unit,
    full_pair,
    run_layers,
    without_autocast,
    zero_with_graph,
)

OnSmall = Literal["raise", "skip"]
# exp(80) is far below the largest float32, and sums of it still are.
LARGEST_EXPONENT = 80.0


def mi_alpha_bound(
    scores: Tensor,
    log_baseline: Tensor,
    alpha: float,
    valid: Tensor | None = None,
    *,
    on_small: OnSmall = "raise",
) -> Tensor:
    """Bound the mutual information of two features from below, by a critic's scores of all their pairs in a batch.

    ``alpha`` trades bias for variance: 1 is InfoNCE, calm but never above log(K - 1); 0 is TUBA, without bias but
    noisy. The objective to minimise is the negative. It couples the rows of a batch, so there is no value per row, and
    accumulating over micro-batches makes K no larger.

    Args:
        scores: ``(K, K)``; entry (i, j) is the critic's score of teacher feature i with student feature j.
        log_baseline: Logarithm of a learned baseline of each teacher feature, ``(K,)``.
        alpha: In [0, 1].
        valid: True at samples that count, ``(K,)``; None = all. The others leave rows and columns.
        on_small: What fewer than two valid samples do: "raise", or "skip" for 0 with a warning (a last batch).

    Returns:
        Nats, a scalar. Gradients flow into both arguments.

    Raises:
        InputError: alpha outside [0, 1]; fewer than two valid samples; unknown ``on_small``; mask not bool.
        ShapeError: scores are not square; the baseline or ``valid`` does not fit.

    Source:
        He et al., "Distiller", arXiv 2109.11105, with the estimator of Poole et al., arXiv 1905.06922. Rows belong to
        the teacher: the official code has the student there, and then the baseline is no function of the row and the
        bound need not hold.

    Example:
        >>> import torch
        >>> scores, baseline = 2 * torch.eye(2), torch.zeros(2)
        >>> [round(mi_alpha_bound(scores, baseline, alpha).item(), 6) for alpha in (0, 0.5, 1)]
        [2.0, 0.566219, 0.0]
    """
    name = "mi_alpha_bound"
    check_unit(alpha, name, "alpha")
    check_choice(on_small, ("raise", "skip"), name, "on_small")
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ShapeError("scores are not square", where=name, expected="(K, K)", got=list(scores.shape))
    if log_baseline.shape != scores.shape[:1]:
        raise ShapeError(
            "the baseline does not fit", where=name, expected=list(scores.shape[:1]), got=list(log_baseline.shape)
        )
    check_mask(valid, scores.shape[:1], name, "(K,)")
    for field, value in (("scores", scores), ("log_baseline", log_baseline)):
        if not value.is_floating_point():
            raise InputError(f"{field} are not floating point", where=name, got=value.dtype)
    dtype = torch.promote_types(torch.promote_types(scores.dtype, log_baseline.dtype), torch.float32)
    scores, log_baseline = scores.to(dtype), log_baseline.to(dtype)
    if valid is not None:
        scores, log_baseline = scores[valid][:, valid], log_baseline[valid]
    K = len(scores)
    if K < 2:
        if on_small == "raise":
            raise InputError(
                "too few samples to tell pairs from others",
                where=name,
                expected="at least 2 that count",
                got=K,
                hint='on_small="skip" gives 0 for such a batch.',
            )
        warnings.warn(f"{name}: {K} valid samples have no mutual information to measure; 0 is returned", stacklevel=2)
        return zero_with_graph(scores) + zero_with_graph(log_baseline)
    others = ~torch.eye(K, dtype=torch.bool, device=scores.device)
    baseline = _interpolated(scores, log_baseline, alpha, others)
    own = scores.diagonal()
    joint = (own[:, None] - baseline)[others].mean()
    if alpha == 1:
        return joint + zero_with_graph(log_baseline)  # the second mean is exactly 1
    excess = (scores - baseline.diagonal()[:, None])[others].clamp_max(LARGEST_EXPONENT)
    return 1 + joint - excess.exp().mean()


def _interpolated(scores: Tensor, log_baseline: Tensor, alpha: float, others: Tensor) -> Tensor:
    """Return log(alpha exp(nce) + (1 - alpha) baseline) for every entry, ``(K, K)``."""
    learned = log_baseline[:, None].expand_as(scores)
    if alpha == 0:
        return learned
    nce = _leave_one_out(scores) - math.log(len(scores) - 1)
    if alpha == 1:
        return nce
    return torch.logaddexp(nce + math.log(alpha), learned + math.log1p(-alpha))


def _leave_one_out(scores: Tensor) -> Tensor:
    """Return at (i, j) the log-sum-exp of row i without column j.

    Taking one share of the row from the whole is exact while it is at most a half; only the largest can be more, so
    that column's sum is taken anew.
    """
    whole = scores.logsumexp(1, keepdim=True)
    largest = F.one_hot(scores.argmax(1), scores.shape[1]).bool()
    without_largest = scores.masked_fill(largest, -torch.inf).logsumexp(1, keepdim=True)
    share = (scores - whole).masked_fill(largest, -torch.inf).exp()
    return torch.where(largest, without_largest, whole + torch.log1p(-share))


class MIAlphaLoss(nn.Module):
    """Maximise the information that a student's features hold about the teacher's, with a critic trained along.

    Asks less than equality: features may be rotated, rescaled, of another width. Give it one vector per sample (the
    [CLS] token, or the mean over tokens that count) and at least 16 samples a batch, 32 better: K is what the bound is
    made of, and gradient accumulation does not enlarge it; ``queue`` does. In the authors' published runs the median
    is that of squared error, and a minority collapses: warm its weight up and watch the bound.

    Args:
        teacher_dim: Width of the teacher's features, D_T.
        student_dim: Width of the student's, D_S.
        alpha: 1 = InfoNCE, 0 = TUBA, see ``mi_alpha_bound``.
        hidden: Width of the critic's two hidden layers.
        out: Width in which critic compares.
        queue: Further pairs, from earlier batches, to tell a pair from: K grows by as many. Their student features are
            as old as they are. Filled in training mode only. 0 = none.
        on_small: What fewer than two valid samples do, "raise" or "skip".

    Raises:
        InputError: a width below 1; alpha outside [0, 1]; a negative queue.

    Source:
        He et al., "Distiller", arXiv 2109.11105; critic and baseline as in the official code, rows as in
        ``mi_alpha_bound``. The queue is ours.

    Example:
        >>> import torch
        >>> loss = MIAlphaLoss(teacher_dim=6, student_dim=4, hidden=8, out=4)
        >>> loss(torch.randn(8, 4), torch.randn(8, 6)).shape
        torch.Size([])
    """

    def __init__(
        self,
        teacher_dim: int,
        student_dim: int,
        alpha: float = 0.9,
        hidden: int = 512,
        out: int = 64,
        *,
        queue: int = 0,
        on_small: OnSmall = "raise",
    ):
        super().__init__()
        sizes = {"teacher_dim": teacher_dim, "student_dim": student_dim, "hidden": hidden, "out": out}
        for field, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError("is no width", where=f"MIAlphaLoss.{field}", expected="at least 1", got=value)
        if isinstance(queue, bool) or not isinstance(queue, int) or queue < 0:
            raise InputError("is no number of pairs", where="MIAlphaLoss.queue", expected="0 or more", got=queue)
        check_unit(alpha, "MIAlphaLoss", "alpha")
        check_choice(on_small, ("raise", "skip"), "MIAlphaLoss", "on_small")
        self.alpha, self.on_small, self.queue = alpha, on_small, queue
        self.teacher_critic = _mlp(teacher_dim, hidden, out)
        self.student_critic = _mlp(student_dim, hidden, out)
        self.baseline = _mlp(teacher_dim, hidden, 1)
        if queue:
            self.register_buffer("kept_teacher", torch.zeros(queue, teacher_dim))
            self.register_buffer("kept_student", torch.zeros(queue, student_dim))
            self.register_buffer("pushed", torch.zeros((), dtype=torch.long))  # pairs in all: where to write next

    def forward(self, student_feat: Tensor, teacher_feat: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the negative bound in nats; features are ``(K, D_S)`` and ``(K, D_T)``, ``valid (K,)``."""
        name = "MIAlphaLoss"
        student, teacher = full_pair(student_feat, teacher_feat, name)
        for side, x, width in (
            ("student", student, self.student_critic[0].in_features),
            ("teacher", teacher, self.teacher_critic[0].in_features),
        ):
            if x.ndim != 2 or x.shape[1] != width:
                raise ShapeError(f"{side} features do not fit", where=name, expected=f"(K, {width})", got=list(x.shape))
        if len(student) != len(teacher):
            raise ShapeError("numbers of samples differ", where=name, expected=len(teacher), got=len(student))
        check_mask(valid, student.shape[:1], name, "(K,)")
        student, teacher = blank(student, valid), blank(teacher, valid)
        counts = torch.ones(len(student), dtype=torch.bool, device=student.device) if valid is None else valid
        all_student, all_teacher = self._with_kept(student, teacher)
        counts = F.pad(counts, (0, len(all_student) - len(student)), value=True)
        with without_autocast(student):
            scores = run_layers(self.teacher_critic, all_teacher) @ run_layers(self.student_critic, all_student).T
            log_baseline = run_layers(self.baseline, all_teacher).squeeze(-1)
        if self.queue and self.training:
            self._keep(student.detach(), teacher, counts[: len(student)])
        return -mi_alpha_bound(scores, log_baseline, self.alpha, counts, on_small=self.on_small)

    def _with_kept(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        filled = min(int(self.pushed), self.queue) if self.queue else 0
        if not filled:
            return student, teacher
        kept = self.kept_student[:filled].to(student.dtype), self.kept_teacher[:filled].to(teacher.dtype)
        return torch.cat([student, kept[0]]), torch.cat([teacher, kept[1]])

    @torch.no_grad()
    def _keep(self, student: Tensor, teacher: Tensor, counts: Tensor) -> None:
        """Put the newest pairs in place of the oldest; what is not finite would spoil every later step."""
        sound = counts & torch.isfinite(student).all(1) & torch.isfinite(teacher).all(1)
        student, teacher = student[sound][-self.queue :], teacher[sound][-self.queue :]
        places = (self.pushed + torch.arange(len(student), device=student.device)) % self.queue
        self.kept_student[places] = student.to(self.kept_student.dtype)
        self.kept_teacher[places] = teacher.to(self.kept_teacher.dtype)
        self.pushed += len(student)


def _mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out)
    )
