"""One line at the end of a launch's first epoch, where the loader is what limits the run."""

from __future__ import annotations

from collections.abc import Sequence

from attnorm.training.meter import Interval

# Share of the time that waiting for data has to take before it is worth a word.
WORTH_MENTIONING = 0.1


def loader_advice(intervals: Sequence[Interval], remedies: Sequence[str]) -> str | None:
    """What the loader delivers, what the model takes, and what to change; None where all is well.

    Args:
        intervals: of one epoch. The first, which starts workers and chooses kernels, is left out;
            nothing can be said of an epoch of a single one.
        remedies: what the loader says would make it faster.
    """
    measured = intervals[1:]
    seconds = sum(interval.seconds for interval in measured)
    waiting = sum(interval.seconds * interval.slowest_data for interval in measured)
    if not remedies or not measured or waiting < WORTH_MENTIONING * seconds:
        return None
    images = sum(interval.seconds * interval.images_per_second for interval in measured)
    return (
        f"The loader delivers {images / seconds:,.0f} img/s, the model takes"
        f" {images / (seconds - waiting):,.0f}: {' or '.join(remedies)}."
    )
