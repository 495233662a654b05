"""Where the time of training steps goes, without stopping the device."""

from __future__ import annotations

import time
from collections import defaultdict

import torch


class StepClock:
    """Books the time between two marks under a name.

    On a GPU the marks are events in its own queue, so what is booked is the device's time: a loader
    that takes long while the GPU still has work to do costs nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, float]] = []
        self._events: list[torch.cuda.Event] = []
        self.restart()

    def restart(self) -> None:
        """Forget what is booked; the next mark's time begins now."""
        self._marks.clear()
        self.mark("start")

    def mark(self, phase: str) -> None:
        """Book the time since the last mark under ``phase``."""
        if not self._on_gpu:
            self._marks.append((phase, time.perf_counter()))
            return
        if len(self._marks) == len(self._events):
            self._events.append(torch.cuda.Event(enable_timing=True))
        self._events[len(self._marks)].record()
        self._marks.append((phase, 0.0))

    def read(self) -> dict[str, float]:
        """Seconds by phase since :meth:`restart`. Waits for a GPU to reach the last mark."""
        if self._on_gpu:
            self._events[len(self._marks) - 1].synchronize()
        seconds: dict[str, float] = defaultdict(float)
        for number in range(1, len(self._marks)):
            seconds[self._marks[number][0]] += self._between(number - 1, number)
        return dict(seconds)

    def _between(self, first: int, second: int) -> float:
        if self._on_gpu:
            return float(self._events[first].elapsed_time(self._events[second])) / 1000
        return self._marks[second][1] - self._marks[first][1]
