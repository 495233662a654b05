"""How far apart two groups of runs are, with the uncertainty that their seeds show."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from scipy import stats  # type: ignore[import-untyped]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """A difference of means and half the width of its 95 % confidence interval.

    ``margin`` is None with too few seeds to estimate a spread.
    """

    value: float
    margin: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.margin is not None and abs(self.value) > self.margin


def difference(ours: Sequence[float], others: Sequence[float]) -> Difference:
    """mean(``ours``) − mean(``others``), independent samples of unequal variance (Welch, 1947)."""
    value = statistics.fmean(ours) - statistics.fmean(others)
    if len(ours) < 2 or len(others) < 2:
        return Difference(value, None)
    parts = [statistics.variance(sample) / len(sample) for sample in (ours, others)]
    if sum(parts) == 0:
        return Difference(value, 0.0)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(sample) - 1) for part, sample in zip(parts, (ours, others), strict=True)
    )
    return Difference(value, _quantile(freedom) * sqrt(sum(parts)))


def difference_to_constant(ours: Sequence[float], constant: float) -> Difference:
    """mean(``ours``) − a printed figure, whose own spread nobody knows (Student's t)."""
    value = statistics.fmean(ours) - constant
    if len(ours) < 2:
        return Difference(value, None)
    return Difference(value, _quantile(len(ours) - 1) * statistics.stdev(ours) / sqrt(len(ours)))


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
