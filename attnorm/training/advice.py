"""One line at the end of a launch's first epoch, where the loader is what limits the run."""

from __future__ import annotations

import os
from collections.abc import Sequence

from attnorm.training.meter import Interval

# Share of the time that waiting for data has to take before it is worth a word.
WORTH_MENTIONING = 0.1


def loader_advice(
    intervals: Sequence[Interval], *, loader: str, workers: int, cores: int
) -> str | None:
    """What the loader delivers, what the model takes, and what to change; None where all is well.

    Args:
        intervals: of one epoch. The first, which starts workers and chooses kernels, is left out;
            nothing can be said of an epoch of a single one.
        loader: name of the loader in use.
        workers: its processes or threads.
        cores: CPU cores for each process.
    """
    measured = intervals[1:]
    seconds = sum(interval.seconds for interval in measured)
    waiting = sum(interval.seconds * interval.slowest_data for interval in measured)
    if loader == "synthetic" or not measured or waiting < WORTH_MENTIONING * seconds:
        return None
    images = sum(interval.seconds * interval.images_per_second for interval in measured)
    remedies = []
    if workers < cores:
        remedies.append(f"raise data.workers={workers} ({cores} cores for each process)")
    if loader == "torch":
        remedies.append("use loader=dali")
    if not remedies:
        remedies.append("give it more CPU cores, or a faster disk than that of data.root")
    return (
        f"The loader delivers {images / seconds:,.0f} img/s, the model takes"
        f" {images / (seconds - waiting):,.0f}: {' or '.join(remedies)}."
    )


def cores_per_process() -> int:
    """CPU cores that this process may use, shared fairly with the others of its machine."""
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // on_this_machine)
