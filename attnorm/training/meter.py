"""What a training loop measures between two log lines, without stopping the device."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnorm import distributed
from attnorm.training.clock import StepClock
from attnorm.training.task import StepOutput

# Later than any step, and a number that every format holds exactly.
_NEVER = 2**53

PHASES = ("data", "forward", "backward", "communication", "optimizer")


@dataclass(frozen=True)
class Interval:
    """Averages over the images of all processes since the last reading."""

    loss: float
    means: dict[str, float]  # of what the task sums
    seconds: float
    images_per_second: float
    # Of the seconds, by what they went into: data, forward, backward, communication, optimizer.
    shares: dict[str, float]
    slowest_data: float  # the share for data on the process that waited longest
    first_bad_step: int | None  # first step with a loss that is not finite
    skipped_steps: int  # steps that fp16 gradients overflowed in, since the beginning
    skipped_in_a_row: int  # the last ones of them with no good step in between


class TrainMeter:
    """Sums of the loss, of what the task names and of images, on the device until they are read.

    Reading them waits for the device once; every process must read at the same steps.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names = tuple(names)
        # The loss, then the task's sums, then the images.
        dtype = distributed.sum_dtype(device)
        self._sums = torch.zeros(len(self._names) + 2, dtype=dtype, device=device)
        # Overflows: all of them, and how many came last without a good step in between.
        self._overflows = torch.zeros(2, dtype=dtype, device=device)
        self._first_bad = torch.full((), _NEVER, dtype=torch.int64, device=device)
        self.clock = StepClock(device)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Forget the time that passed outside training steps (an evaluation, a checkpoint)."""
        self._started = time.perf_counter()
        self.clock.restart()

    def update(self, output: StepOutput, step: int) -> None:
        """Count one micro-batch."""
        loss, dtype = output.loss.detach(), self._sums.dtype
        named = [output.sums[name].to(dtype) for name in self._names]
        self._sums[:-1] += torch.stack((loss.to(dtype) * output.count, *named))
        self._sums[-1] += output.count
        bad = torch.where(loss.isfinite(), _NEVER, step)
        self._first_bad = torch.minimum(self._first_bad, bad)

    def count_overflow(self, found_inf: Tensor) -> None:
        """Count a step that the loss scaler skipped; ``found_inf`` is 1 or 0, on the device."""
        overflow = found_inf.to(self._overflows.dtype).squeeze()
        self._overflows[0] += overflow
        self._overflows[1] = (self._overflows[1] + 1) * overflow

    def state_dict(self) -> dict[str, Tensor]:
        """What this process has summed since the last reading, on the CPU."""
        return {
            "sums": self._sums.cpu(),
            "first_bad": self._first_bad.cpu(),
            "overflows": self._overflows.cpu(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._sums = state["sums"].to(self._sums.dtype).to(self._sums.device)
        self._first_bad = state["first_bad"].to(self._first_bad.device)
        self._overflows = state["overflows"].to(self._sums.dtype).to(self._sums.device)

    def read(self) -> Interval:
        """Averages since the last reading, over all processes."""
        sums = distributed.all_reduce_sum(self._sums)
        loss, *named, images = sums.tolist()
        seconds = time.perf_counter() - self._started
        shares = {phase: value / seconds for phase, value in self.clock.read().items()}
        everywhere = distributed.gather_objects((int(self._first_bad), shares))
        first_bad = min(bad for bad, _ in everywhere)
        skipped, in_a_row = self._overflows.tolist()  # gradients are reduced: equal everywhere
        interval = Interval(
            loss=loss / images,
            means={name: s / images for name, s in zip(self._names, named, strict=True)},
            seconds=seconds,
            images_per_second=images / seconds,
            shares={
                phase: sum(own.get(phase, 0.0) for _, own in everywhere) / len(everywhere)
                for phase in PHASES
            },
            slowest_data=max(own["data"] for _, own in everywhere),
            first_bad_step=None if first_bad >= _NEVER else first_bad,
            skipped_steps=int(skipped),
            skipped_in_a_row=int(in_a_row),
        )
        self._sums = torch.zeros_like(self._sums)
        self.restart_clock()
        return interval


def peak_memory_mib(device: torch.device) -> float:
    """Most memory held so far in MiB: by torch's tensors on a GPU, else by the process.

    What DALI's pipelines and CUDA itself hold on a GPU is not in it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
