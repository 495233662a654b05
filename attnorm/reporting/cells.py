"""What stands in the cells of all tables: speeds, differences, how far a run came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attnorm.reporting.comparison import Difference
from attnorm.reporting.runs import Run, several_machines


def state(run: Run) -> str:
    """How far a run that has not finished came."""
    epochs = f"{run.result.get('epochs', 0)} of {run.config['epochs']} epochs"
    return f"seed {run.config['seed']} {run.status}, {epochs}"


def no_common_speed(results: Iterable[Sequence[Run]]) -> list[str]:
    """The remark on missing speeds, where one is missing."""
    if any(several_machines(runs) for runs in results):
        return ["No speed where runs of a result ran on different machines."]
    return []


def spread(mean: float | None, std: float | None, digits: int) -> str:
    """A mean and its standard deviation."""
    if mean is None:
        return "n/a"
    return f"{mean:.{digits}f}" if std is None else f"{mean:.{digits}f} ± {std:.{digits}f}"


def sign(value: float, digits: int) -> str:
    """A difference with its sign, a minus of its own width."""
    return f"{value:+.{digits}f}".replace("-", "−")


def signed(difference: Difference | None, digits: int) -> str:
    """A difference and its confidence interval."""
    if difference is None:
        return "–"
    value = sign(difference.value, digits)
    if difference.margin is None:
        return value
    low, high = (difference.value + side * difference.margin for side in (-1, 1))
    return f"{value} [{sign(low, digits)}, {sign(high, digits)}]"


def number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def joined(texts: Iterable[str]) -> str:
    """Of several results in a cell."""
    return "; ".join(texts) or "–"
