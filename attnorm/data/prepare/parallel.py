"""Work in forked processes: started safely, with a line of progress now and then."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

from attnorm.data.workers import nothing_to_collect

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    function: Callable[[Item], Result], work: Iterable[Item], workers: int, doing: str
) -> Iterator[Result]:
    """Results in the order of completion."""
    items = list(work)
    with ProcessPoolExecutor(min(workers, max(1, len(items))), get_context("fork")) as pool:
        with nothing_to_collect():
            futures = [pool.submit(function, item) for item in items]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                yield future.result()
                log_progress(doing, done, len(items))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def log_progress(doing: str, done: int, total: int) -> None:
    """A line for every twentieth part, so that a log file stays short."""
    if done == total or done % max(1, total // 20) == 0:
        logger.info("%s: %d of %d", doing, done, total)


def available_workers() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))
