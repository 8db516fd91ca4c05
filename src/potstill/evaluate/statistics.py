"""Numbers with their uncertainty: confidence intervals over seeds, paired tests, ranks, errors of proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.errors import InputError


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        mean: Mean of the values.
        low: Lower end.
        high: Upper end.
        std: Sample standard deviation (divided by n - 1).
        n: Number of values.
    """

    mean: float
    low: float
    high: float
    std: float
    n: int

    @property
    def half_width(self) -> float:
        """Distance from the mean to either end."""
        return self.high - self.mean

    @property
    def excludes_zero(self) -> bool:
        """True if zero lies outside: a paired difference this clear is called significant."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.half_width:.2g} (n = {self.n})"


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean of independent values, such as one score per seed, with its Student t interval.

    Args:
        values: At least two finite numbers; one value says nothing about its spread.
        confidence: Between 0 and 1.

    Raises:
        InputError: Fewer than two values, a value that is not finite, or a confidence outside (0, 1).

    Example:
        >>> print(mean_interval([0.70, 0.72, 0.71, 0.69, 0.73]))
        0.71 ± 0.02 (n = 5)
    """
    values = [float(v) for v in values]
    if len(values) < 2:
        raise InputError("too few values for an interval", where="values", expected="at least 2", got=len(values))
    if not all(map(math.isfinite, values)):
        raise InputError("a value is not finite", where="values", got=values)
    n, mean = len(values), math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = t_quantile(confidence, n - 1) * std / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, std, n)


def paired_interval(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean of ``first - second`` with its interval, pair by pair.

    For two methods run with the same seeds: what a seed does to both cancels out.
    """
    if len(first) != len(second):
        raise InputError("not pairs", where="paired_interval", expected=f"{len(first)} values", got=len(second))
    return mean_interval([a - b for a, b in zip(first, second)], confidence)


def paired_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value of a paired t-test: how often chance alone makes a mean difference this large.

    Exact for differences that are normal, from Student's distribution with n - 1 degrees of freedom. Differences that
    are all alike give 0, or 1 if they are all zero.

    Raises:
        InputError: As ``paired_interval``.

    Example:
        >>> round(paired_p([3.0, 5.0, 4.0], [1.0, 2.0, 3.0]), 4)
        0.0742
    """
    gap = paired_interval(first, second)
    if not gap.std:
        return 1.0 if gap.mean == 0 else 0.0
    return two_sided_p(gap.mean / gap.std * math.sqrt(gap.n), gap.n - 1)


def two_sided_p(t: float, freedom: int) -> float:
    """Return the mass of Student's distribution outside -|t| to |t|."""
    if freedom < 1:
        raise InputError("does not fit", where="freedom", expected="at least 1", got=freedom)
    return max(0.0, 1.0 - _central_mass(math.atan(abs(t) / math.sqrt(freedom)), freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, so that the chance of any false discovery stays as it says.

    Holm's step-down: the smallest is multiplied by n, the next by n - 1, ..., none below the one before it.

    Source:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, least = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        least = min(1.0, max(least, p_values[i] * (len(p_values) - place)))
        corrected[i] = least
    return corrected


def ranks(values: Sequence[float], *, higher_is_better: bool = True) -> list[float]:
    """Return the place of every value, 1 = best; equal ones share the mean of their places."""
    keys = [-v if higher_is_better else v for v in values]
    return [sum(k < key for k in keys) + (sum(k == key for k in keys) + 1) / 2 for key in keys]


def proportion_error(share: float, n: int) -> float:
    """Return the standard error of a share seen in n independent samples, √(p(1 - p) / n); 0 samples give NaN."""
    return math.sqrt(max(share * (1 - share), 0.0) / n) if n else math.nan


def ratio_error(hits: Sequence[float], totals: Sequence[float]) -> float:
    """Return the standard error of Σ hits / Σ totals when whole samples were drawn, not single units.

    The objects of one picture are found or missed together, so counting each as independent would claim too small an
    error. Linearised (Taylor) estimator of a ratio; fewer than two samples or no unit give NaN.
    """
    n, units = len(hits), math.fsum(totals)
    if n < 2 or not units:
        return math.nan
    ratio = math.fsum(hits) / units
    squares = math.fsum((h - ratio * t) ** 2 for h, t in zip(hits, totals))
    return math.sqrt(squares * n / (n - 1)) / units


def t_quantile(confidence: float, freedom: int) -> float:
    """Return t such that Student's distribution holds ``confidence`` of its mass between -t and t.

    By bisection of the closed form for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
    """
    if not 0 < confidence < 1:
        raise InputError("does not fit", where="confidence", expected="between 0 and 1", got=confidence)
    if freedom < 1:
        raise InputError("does not fit", where="freedom", expected="at least 1", got=freedom)
    # Bisect the angle atan(t / √freedom): it is bounded however heavy the tails.
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_mass(middle, freedom) < confidence else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(freedom)


def _central_mass(angle: float, freedom: int) -> float:
    cos, sin = math.cos(angle), math.sin(angle)
    if freedom % 2 == 0:
        term = total = 1.0
        for k in range(1, freedom // 2):
            term *= cos * cos * (2 * k - 1) / (2 * k)
            total += term
        return sin * total
    total, term = 0.0, cos
    for k in range(1, (freedom + 1) // 2):
        total += term
        term *= cos * cos * 2 * k / (2 * k + 1)
    return (angle + sin * total) * 2 / math.pi
