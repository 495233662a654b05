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


def paired_difference(pairs: Sequence[tuple[float, float]]) -> Difference:
    """Mean of ours − other's, each pair with a seed in common (Student's t of the differences)."""
    differences = [ours - other for ours, other in pairs]
    value, margin = statistics.fmean(differences), margin_of(differences)
    return Difference(value, margin)


def margin_of(values: Sequence[float]) -> float | None:
    """Half the width of the mean's 95 % confidence interval (Student's t); None for one value."""
    if len(values) < 2:
        return None
    return _quantile(len(values) - 1) * statistics.stdev(values) / sqrt(len(values))


def difference_to_constant(ours: Sequence[float], constant: float) -> Difference:
    """mean(``ours``) − a printed figure, whose own spread nobody knows (Student's t)."""
    return Difference(statistics.fmean(ours) - constant, margin_of(ours))


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
