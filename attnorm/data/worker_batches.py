"""Batches that worker processes make: one DataLoader, sent to any position of any epoch."""

from __future__ import annotations

import copy
import multiprocessing
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import RawValue
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from attnorm.data.workers import nothing_to_collect

T = TypeVar("T")

_SECONDS_TO_SIGNAL = 2.0


@dataclass(frozen=True)
class Request:
    """One batch to make."""

    epoch: int
    images: NDArray[np.int64]


class BatchPlan(Protocol):
    """Which images are in which batch of this process."""

    def __len__(self) -> int: ...

    def batches(self, epoch: int, start_batch: int) -> list[NDArray[np.int64]]: ...


class WorkerBatches(Generic[T]):
    """What ``make[request]`` gives for the batches of a plan, from ``workers`` processes (0: here).

    Args:
        prefetch: batches made ahead by each worker.
        pin_memory: hand answers over in page-locked memory (their ``pin_memory()``).
    """

    def __init__(
        self, make: Dataset[T], plan: BatchPlan, *, workers: int, prefetch: int, pin_memory: bool
    ) -> None:
        self._requests = _Requests(plan)
        self._loader: DataLoader[T] | None = DataLoader(
            make,
            batch_size=None,
            sampler=self._requests,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            multiprocessing_context=_context() if workers else None,
            # Every start of the workers draws a seed. From torch's own generator it would shift
            # what a model draws, in a run that is continued in the middle of an epoch.
            generator=torch.Generator(),
        )

    def epoch(self, epoch: int, start_batch: int) -> Iterator[T]:
        """The answers of one epoch from ``start_batch`` on.

        Raises:
            RuntimeError: it was closed, or a worker no longer answers.
        """
        if self._loader is None:
            raise RuntimeError("the loader was closed")
        self._requests.epoch, self._requests.start_batch = epoch, start_batch
        try:
            yield from self._answers(self._loader)
        except (ConnectionError, EOFError) as error:
            # A worker ended before it handed over the memory of a batch. The signal that says so
            # makes torch raise an error which names it: here, and not in whatever comes next.
            time.sleep(_SECONDS_TO_SIGNAL)
            raise RuntimeError(f"DataLoader worker no longer answers ({error}).") from error

    @staticmethod
    def _answers(loader: DataLoader[T]) -> Iterator[T]:
        """The workers' answers. No frame here is left holding the iterator after an exception:

        it would be collected with a traceback, some time, and then not end its workers well.
        """
        with nothing_to_collect():  # the workers start here
            return iter(loader)

    def close(self) -> None:
        """The workers end with the last reference to their DataLoader."""
        self._loader = None


class _Requests(Sampler[Request]):
    """The batches from the position that is set on it to the end of the epoch."""

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        self.epoch = 0
        self.start_batch = 0

    def __len__(self) -> int:
        return len(self._plan) - self.start_batch

    def __iter__(self) -> Iterator[Request]:
        for images in self._plan.batches(self.epoch, self.start_batch):
            yield Request(self.epoch, images)


class _Flag:
    """An event without a lock.

    A worker that is killed while it reads a ``multiprocessing.Event`` keeps it locked, and this
    process would wait for the lock forever when it sets the event to end the other workers.
    """

    def __init__(self) -> None:
        self._value = RawValue("b", 0)

    def is_set(self) -> bool:
        return bool(self._value.value)

    def set(self) -> None:
        self._value.value = 1


def _context() -> BaseContext:
    """Start workers by fork, also where Python 3.14 would not: they share what is in memory."""
    start_method = "fork" if sys.platform == "linux" else None
    context = copy.copy(multiprocessing.get_context(start_method))
    context.Event = _Flag  # type: ignore[assignment,method-assign]
    return context


def uninitialized_pixels(count: int) -> Tensor:
    """uint8 (count,); in a worker, in memory that the main process sees.

    Otherwise the batch would be copied there, and the freed copies would let the worker's heap grow
    (the C library rarely reuses large aligned blocks).
    """
    if get_worker_info() is None or not count:
        return torch.empty(count, dtype=torch.uint8)
    shared = torch.UntypedStorage._new_shared(count)
    return torch.empty(0, dtype=torch.uint8).set_(shared)


def _as_it_is(answer: Any) -> Any:
    return answer
