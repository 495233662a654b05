"""What a process has to do before it forks others."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
