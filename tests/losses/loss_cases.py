"""Every loss of the package as a case: how to call it, on which shapes, what its mask looks like.

A loss enters the batteries by its name in ``potstill.losses.__all__``. One that compares ``(..., D)`` with ``(..., D)``
row by row needs nothing more; one with other shapes or further arguments needs a row in ``CASES``.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

import potstill.losses
from potstill.losses import (
    LazyLogits,
    amad_loss,
    attention_kl,
    attention_transfer,
    cka_loss,
    dac_kl_loss,
    dist_loss,
    dkd,
    fused_loss,
    generalized_jsd,
    head_mean,
    hint_mse,
    kd_kl,
    kdpp_loss,
    lelp_loss,
    meal_v2_similarity_loss,
    minilm_relation,
    module_hidden_loss,
    nd_loss,
    one_to_one_heads,
    pld_loss,
    pld_token_loss,
    reverse_kl,
    sinkhorn_kd_loss,
    sinkhorn_kd_token_loss,
    span_correlation_loss,
    squeezing_heads,
    token_relation_loss,
    trg_global_loss,
    trg_inner_loss,
    trg_local_loss,
    tv_distance,
    vlm_align_loss,
    vlm_contrast_loss,
    vlm_mse_loss,
    whitened_feature_loss,
)

TARGET = torch.tensor([1, 4, 0, 2, 2, 3, 1, 0])
OF_MAPS = (amad_loss, attention_kl, head_mean, one_to_one_heads, squeezing_heads)


@dataclass
class Case:
    """One loss: shapes for B samples, how to call it, what its mask looks like."""

    name: str
    call: Callable
    student: tuple[int, ...] = (3, 5)  # without the batch axis
    teacher: tuple[int, ...] = (3, 5)
    mask: tuple[int, ...] = (3,)  # without the batch axis
    # The axis the mask lacks, or those in turn; None = every axis behind the batch.
    feature_axis: int | tuple[int, ...] | None = -1
    loss: Callable | None = None  # the function behind ``call``, if that is a wrapper
    refuses_an_empty_mask: bool = False
    refuses_an_empty_batch: bool = False
    needs_every_sample: bool = False  # refuses a sample of which nothing counts
    has_labels: bool = False  # of its own, in the order of ``TARGET``
    couples_rows: bool = False  # so that its reductions are not one value a row, nor their sum
    costs_equal_models: bool = False  # is not 0 where both agree
    is_per_sample: bool = False  # "none" gives one value per sample, not one per position
    counts_empty_samples: bool = False  # in the mean, with 0
    has_kink: bool = False  # the gradient jumps where both models agree
    has_kinks_between_rows: bool = False  # and where rows do, as those do that are sure of a class
    loses_digits: bool = False  # small values are differences of larger ones
    differentiates_twice: bool = True
    detaches_a_part: bool = False  # of the value, such as a scale of the student's own
    rounds_products: bool = False  # under autocast, as the model's own head does

    def __post_init__(self):
        self.loss = self.loss or self.call

    def takes(self, option):
        return option in inspect.signature(self.loss).parameters

    @property
    def reductions(self):
        return self.takes("reduction") and not self.couples_rows

    @property
    def compares_logits(self):
        return self.takes("temperature")

    def has_gradient(self, regime, temperature=1.0):
        """Whether such inputs are clear of kinks."""
        if self.has_kinks_between_rows:
            return regime == "apart" and temperature >= 1
        return not self.has_kink or "close" not in regime

    def inputs(self, B, seed=0, dtype=torch.float64):
        draws = torch.Generator().manual_seed(seed)
        pair = [torch.randn(B, *shape, generator=draws, dtype=torch.float64) for shape in (self.student, self.teacher)]
        return [self.fitted(x).to(dtype) for x in pair]

    def fitted(self, x):
        """Make any numbers fit for the loss."""
        return x.softmax(-1) if self.loss in OF_MAPS else x

    def moved(self, x, factor):
        """Multiply what fits the loss so that it still does."""
        x = x * factor
        return x / x.sum(-1, keepdim=True) if self.loss in OF_MAPS else x

    def mask_for(self, B, seed=0):
        mask = torch.rand(B, *self.mask, generator=torch.Generator().manual_seed(seed)) < 0.7
        if self.needs_every_sample:
            mask[:, 0] = True
        return mask

    def spread(self, mask, x):
        """Return the mask with the axes of ``x``."""
        if self.feature_axis is None:
            return mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim)).expand_as(x)
        for axis in (self.feature_axis,) if isinstance(self.feature_axis, int) else self.feature_axis:
            mask = mask.unsqueeze(axis)
        return mask.expand_as(x)

    def whole_rows(self, x):
        """Options under which rows that rounding has made a little more or less than 1 are made whole first.

        Else the same rows would be refused in float64, which knows no rounding to excuse them.
        """
        if not self.takes("key_mask"):
            return {}
        return {"key_mask": torch.ones(len(x), x.shape[-1], dtype=torch.bool)}

    def counted(self, mask):
        """How many values the mean is over."""
        if self.counts_empty_samples:
            return len(mask)
        return int((mask.any(1) if self.is_per_sample else mask).sum().clamp_min(1))


def _dkd(s, t, mask=None, **more):
    return dkd(s, t, TARGET[: len(s)], mask=mask, **more)


def _fused(s, t, mask=None, **more):
    """Let the student's head be the identity, in float32 however small the hidden states."""
    head = torch.eye(s.shape[-1], dtype=torch.promote_types(s.dtype, torch.float32))
    return fused_loss(LazyLogits(s, head), t, kd_kl, mask=mask, budget=1000, **more)


def _minilm(s, t, mask=None, **more):
    return minilm_relation(s, t, 2, mask, **more)


def _module_hidden(s, t, mask=None):
    return module_hidden_loss([s, s / 2], [t, t], None, mask)


MEANS = torch.randn(5, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def _pld(s, t, mask=None, **more):
    return pld_loss(s, t, TARGET[: len(s)], mask=mask, allow_empty=True, **more)


def _pld_token(s, t, mask=None, **more):
    labels = TARGET[: len(s)].unsqueeze(1).expand(s.shape[:2])
    return pld_token_loss(s, t, labels, mask=mask, topk=3, allow_empty=True, **more)


def _nd(s, t, mask=None, **more):
    return nd_loss(s, t, MEANS, TARGET[: len(s)], mask, allow_empty=True, **more)


def _kdpp(s, t, mask=None, reduction="mean"):
    """Take the features of both models behind their logits, in one tensor."""
    logits, features = ([x[:, :5] for x in (s, t)], [x[:, 5:] for x in (s, t)])
    more = {"mask": mask, "allow_empty": True, "reduction": reduction}
    return kdpp_loss(*logits, TARGET[: len(s)], *features, MEANS, **more)


def _trg_local(s, t, mask=None):
    return trg_local_loss(s, t, 1, 4.0, mask=mask)


def _trg_local_mean(s, t, mask=None):
    return trg_local_loss(s, t, 1, mask=mask)


def _trg_global(s, t, mask=None):
    return trg_global_loss(s, t, None, 0.5, mask=mask)


TOKENS = {"refuses_an_empty_mask": True, "refuses_an_empty_batch": True}


def _token_relations(s, t, mask=None, **more):
    return token_relation_loss(s, s.flip(-1), 2 * s, t, t.flip(-1), 2 * t, 2, mask=mask, **more)


def _whitened(s, t, mask=None, **more):
    d_t, d_s = t.shape[-1], s.shape[-1]
    weight = torch.linspace(-1, 1, d_t * d_s).reshape(d_t, d_s)
    return whitened_feature_loss(s, t, weight, weight[:, 0], mask=mask, **more)


def _vlm_align(s, t, mask=None, **more):
    text = torch.eye(t.shape[-1]) + 0.1
    return vlm_align_loss(s, t, text, filter_misaligned=False, mask=mask, **more)


def _dac_kl(s, t, mask=None, **more):
    return dac_kl_loss(s, t, 0.3, 0.9, mask=mask, **more)


def _span_correlation(s, t, mask=None, **more):
    return span_correlation_loss(s, t, torch.zeros(s.shape[:2], dtype=torch.long), mask, **more)


def _lelp(s, t, mask=None, **more):
    if t.is_floating_point():
        t = t.to(torch.promote_types(t.dtype, torch.float32)).softmax(-1)
    return lelp_loss(s, t.unflatten(-1, (3, 2)), mask, **more)


def _meal_v2(s, t, mask=None, **more):
    return meal_v2_similarity_loss(s, [t, 2 * t.flip(-1)], mask, **more)


def _of_maps(loss, name=None, student=(2, 3, 4), teacher=(3, 3, 4), **options):
    """Return a case of a loss that takes a query mask and any numbers of heads, (H, Q, K)."""

    def call(s, t, mask=None, **more):
        return loss(s, t, query_mask=mask, **options, **more)

    return Case(
        name or loss.__name__,
        call,
        student,
        teacher,
        (3,),
        feature_axis=(1, 3),
        loss=loss,
        is_per_sample=True,
        counts_empty_samples=True,
    )


def _halved(maps):
    """Stand in for a trained projection: not linear, not below 0, of the same shape."""
    return (maps - 0.05).relu() / 2 + maps.square()


CASES = [
    Case("kd_kl", partial(kd_kl, temperature=2.0), loss=kd_kl),
    Case("reverse_kl", reverse_kl),
    Case("generalized_jsd", partial(generalized_jsd, beta=0.3), loss=generalized_jsd),
    Case("tv_distance", tv_distance, has_kink=True),
    Case("dkd", _dkd, (5,), (5,), (), loss=dkd, has_labels=True),
    Case("dist_loss", dist_loss),
    Case("dist_loss_dense", dist_loss, (5, 2, 3), (5, 2, 3), (2, 3), feature_axis=1),
    Case("cka_loss", cka_loss, (3, 4), (3, 6), loses_digits=True),
    Case(
        "cka_loss_rbf",
        partial(cka_loss, kernel="rbf", debiased=True),
        (3, 4),
        (3, 6),
        loss=cka_loss,
        loses_digits=True,
        differentiates_twice=False,  # torch.cdist does not
    ),
    Case(
        "fused_loss",
        _fused,
        loss=fused_loss,
        couples_rows=True,  # it has no "none"
        loses_digits=True,
        differentiates_twice=False,
        rounds_products=True,
    ),
    Case("hint_mse", hint_mse),
    Case("hint_mse_map", hint_mse, (4, 2, 3), (4, 2, 3), (2, 3), feature_axis=1),
    Case("attention_transfer", attention_transfer, (4, 3, 3), (6, 2, 5), (), feature_axis=None),
    Case(
        "attention_transfer_l2",
        partial(attention_transfer, mode="l2", p=3),
        (4, 3, 3),
        (6, 3, 3),
        (),
        feature_axis=None,
        loss=attention_transfer,
    ),
    Case("attention_kl", attention_kl, (2, 3, 4), (2, 3, 4), (2, 3), loses_digits=True),
    _of_maps(amad_loss, "amad_loss_kl"),
    _of_maps(amad_loss, "amad_loss_mse", variant="mse", tau=0.5),
    _of_maps(amad_loss, "amad_loss_token_kl", variant="token_kl", head_reduction="mean"),
    _of_maps(amad_loss, "amad_loss_projected_kl", variant="projected_kl", projection=_halved),
    _of_maps(amad_loss, "amad_loss_one_head", student=(1, 3, 4), teacher=(1, 3, 4)),
    _of_maps(head_mean, student=(2, 3, 4), teacher=(2, 3, 4)),
    _of_maps(one_to_one_heads, student=(2, 3, 4), teacher=(2, 3, 4)),
    _of_maps(squeezing_heads),
    Case("lelp_loss", _lelp, (6,), (6,), (), loss=lelp_loss, refuses_an_empty_mask=True, costs_equal_models=True),
    Case(
        "meal_v2_similarity_loss",
        _meal_v2,
        loss=meal_v2_similarity_loss,
        refuses_an_empty_mask=True,
        costs_equal_models=True,
    ),
    Case("minilm_relation", _minilm, (4, 6), (4, 8), (4,), loss=minilm_relation, is_per_sample=True),
    Case("module_hidden_loss", _module_hidden, (3, 4), (3, 4), loss=module_hidden_loss, refuses_an_empty_mask=True),
    Case("pld_loss", _pld, (5,), (5,), (), loss=pld_loss, has_labels=True, costs_equal_models=True),
    Case("pld_token_loss", _pld_token, loss=pld_token_loss, has_labels=True, costs_equal_models=True),
    Case("nd_loss", _nd, (4,), (4,), (), loss=nd_loss, has_labels=True, costs_equal_models=True),
    Case("kdpp_loss", _kdpp, (9,), (9,), (), has_labels=True, costs_equal_models=True),
    Case(
        "sinkhorn_kd_loss",
        sinkhorn_kd_loss,
        (5,),
        (5,),
        (),
        couples_rows=True,
        costs_equal_models=True,
        has_kink=True,
        has_kinks_between_rows=True,
        differentiates_twice=False,  # torch.cdist does not
    ),
    Case(
        "sinkhorn_kd_token_loss",
        partial(sinkhorn_kd_token_loss, debiased=True, reduction="mean", group_size=100),
        loss=sinkhorn_kd_token_loss,
        couples_rows=True,
        has_kink=True,
        has_kinks_between_rows=True,
        loses_digits=True,
        differentiates_twice=False,
    ),
    Case("trg_local_loss", _trg_local, (4,), (6,), (), loss=trg_local_loss, **TOKENS),
    Case(
        "trg_local_loss_mean",
        _trg_local_mean,
        (4,),
        (4,),
        (),
        loss=trg_local_loss,
        detaches_a_part=True,
        differentiates_twice=False,  # of the part that is not detached only
        **TOKENS,
    ),
    Case("trg_global_loss", _trg_global, (4,), (4,), (), loss=trg_global_loss, costs_equal_models=True, **TOKENS),
    Case(
        "trg_inner_loss",
        trg_inner_loss,
        (4, 3),
        (4, 5),
        (4,),
        refuses_an_empty_mask=True,
        needs_every_sample=True,
    ),
    Case("token_relation_loss", _token_relations, (4, 6), (4, 8), (4,), loss=token_relation_loss, is_per_sample=True),
    Case("dac_kl_loss", _dac_kl, loss=dac_kl_loss),
    Case("dac_kl_loss_soft", partial(_dac_kl, mode="soft"), loss=dac_kl_loss),
    Case("span_correlation_loss", _span_correlation, loss=span_correlation_loss),
    Case("whitened_feature_loss", _whitened, (3, 4), (3, 6), loss=whitened_feature_loss),
    Case("vlm_align_loss", _vlm_align, (5,), (5,), (), loss=vlm_align_loss, refuses_an_empty_batch=True),
    Case("vlm_mse_loss", vlm_mse_loss, (5,), (5,), (), refuses_an_empty_batch=True),
    Case(
        "vlm_contrast_loss",
        vlm_contrast_loss,
        (5,),
        (5,),
        (),
        refuses_an_empty_batch=True,
        costs_equal_models=True,
    ),
]


def is_loss(item):
    """A loss compares a student with a teacher where a mask says: those are its arguments."""
    names = list(inspect.signature(item).parameters) if inspect.isfunction(item) else []
    if names[:2] == ["student_attn", "teacher_attn"]:
        return "query_mask" in names
    return names[:2] == ["student", "teacher"] and "mask" in names


def add_cases(names):
    """Give every loss that has no case one of its own, on the usual shapes."""
    known = {case.loss for case in CASES}
    for name in names:
        loss = getattr(potstill.losses, name)
        if is_loss(loss) and loss not in known:
            CASES.append(
                _of_maps(loss, name) if "query_mask" in inspect.signature(loss).parameters else Case(name, loss)
            )


add_cases(potstill.losses.__all__)


def value_and_gradient(case, student, teacher, mask=None, **options):
    """Return the value and the gradient at ``student``, each in the precision it comes in."""
    student = student.detach().clone().requires_grad_()
    value = case.call(student, teacher, mask=mask, **options)
    value.backward()
    return value.detach(), student.grad


def _drawn(case, B, seed, size):
    draws = torch.Generator().manual_seed(seed)
    pair = [
        size * torch.randn(B, *shape, generator=draws, dtype=torch.float64) for shape in (case.student, case.teacher)
    ]
    return [case.fitted(x.clamp(-size, size) if size > 1 else x) for x in pair]


def _close(case, B, seed, distance, size=1.0):
    draws = torch.Generator().manual_seed(seed)
    teacher = case.fitted(size * torch.randn(B, *case.teacher, generator=draws, dtype=torch.float64))
    noise = distance * torch.randn(teacher.shape, generator=draws, dtype=torch.float64)
    return case.moved(teacher, noise.exp()), teacher


# How far inputs may be from ordinary: name -> (student, teacher) for B rows and a seed, before rounding.
REGIMES = {
    "apart": lambda case, B, seed: _drawn(case, B, seed, 1.0),
    "close": lambda case, B, seed: _close(case, B, seed, 0.02),  # the coarsest type has steps of 0.8 %
    "huge": lambda case, B, seed: _drawn(case, B, seed, 1e4),
    "huge, close": lambda case, B, seed: _close(case, B, seed, 0.02, 1e4),
}


@dataclass
class Errors:
    """Value and gradient in some precision against the same inputs in float64."""

    value: float  # absolute
    exact_value: float
    gradient: float  # norm of the difference
    exact_gradient: float  # norm


def errors(case, student, teacher, mask=None, **options):
    """Measure a loss on inputs that are rounded already: the rounding of inputs is not the loss's fault."""
    options |= case.whole_rows(student)
    value, grad = value_and_gradient(case, student, teacher, mask, **options)
    exact, exact_grad = value_and_gradient(case, student.double(), teacher.double(), mask, **options)
    assert torch.isfinite(exact), "the case is no fair one: not even float64 gives a number"
    # Reverse KL against logits of ±1e4 at T = 0.05 has gradients beyond 65504, the largest float16.
    beyond = (exact_grad.abs() > torch.finfo(grad.dtype).max) & grad.isinf()
    grad, exact_grad = grad.masked_fill(beyond, 0), exact_grad.masked_fill(beyond, 0)
    return Errors(
        (value.double() - exact).abs().item(),
        exact.abs().item(),
        (grad.double() - exact_grad).norm().item(),
        exact_grad.norm().item(),
    )
