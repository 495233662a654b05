"""How many workers a loader has, and what a process has to do before it forks them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from attnorm import distributed

_MOST = 8  # by default: more of them wait for a disk, or take memory


def worker_count(wanted: int | None) -> int:
    """``data.workers``, or as many as there are cores for this process, at most 8."""
    return min(distributed.cores_per_process(), _MOST) if wanted is None else wanted


@contextmanager
def nothing_to_collect() -> Iterator[None]:
    """Processes forked inside never collect the garbage that they inherit.

    A dead DALI pipeline, for one, waits for its threads when it is collected, and threads do not
    survive a fork: the worker would hang. Untouched memory also stays shared.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
