"""What a GPU's kernels take, one by one: launching them from Python is not in it.

On a CPU the same functions give the time of torch's operators, so that what is written for a GPU
runs everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")

# Inputs that take turns, so that none is still in the GPU's second cache (50 MB on an H100).
ROTATED_INPUTS = 3


@dataclass(frozen=True)
class Kernels:
    """Everything that ran on the device in one call.

    Attributes:
        seconds: per call, by the kernel's name.
        launches: per call, copies and fills included.
    """

    seconds: dict[str, float]
    launches: float

    @property
    def total(self) -> float:
        """Seconds per call."""
        return sum(self.seconds.values())

    def named(self, part: str) -> float:
        """Seconds per call of the kernels whose name contains ``part``.

        Raises:
            KeyError: none does.
        """
        found = [taken for name, taken in self.seconds.items() if part in name]
        if not found:
            raise KeyError(f"no kernel is named like {part!r}: {', '.join(self.seconds)}")
        return sum(found)


def profile_kernels(call: Callable[[], object], calls: int = 1) -> Kernels:
    """Let ``call`` run ``calls`` times under the profiler; it must have run before."""
    on_gpu = torch.cuda.is_available()
    device_type = "CUDA" if on_gpu else "CPU"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity], acc_events=True) as profiler:
        for _ in range(calls):
            call()
        if on_gpu:
            torch.cuda.synchronize()
    taken = {
        event.key: event
        for event in profiler.key_averages()
        if event.device_type.name == device_type and is_work(event.key, event.is_user_annotation)
    }
    seconds = {
        name: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6 / calls
        for name, event in taken.items()
    }
    return Kernels(seconds, sum(event.count for event in taken.values()) / calls)


def is_work(name: str, is_annotation: bool) -> bool:
    """Whether the device computes or copies then, rather than waits or is told a range's name."""
    return not is_annotation and not name.endswith((" Sync", "Wait Event"))


def device_seconds(call: Callable[[], object], calls: int = 1) -> float:
    """Seconds per call that the device computes for."""
    return profile_kernels(call, calls).total


def in_rotation(inputs: Sequence[T]) -> Callable[[], T]:
    """A function that gives one input after the other, over and over."""
    endless: Iterator[T] = cycle(inputs)
    return lambda: next(endless)


def rotated(make: Callable[[], T], device: torch.device) -> list[T]:
    """As many inputs as take turns: on a CPU one, whose caches training does not clear either."""
    numbers: Iterable[int] = range(ROTATED_INPUTS if device.type == "cuda" else 1)
    return [make() for _ in numbers]
