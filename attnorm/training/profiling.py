"""``profile=true``: a trace of a few training steps, for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

logger = logging.getLogger(__name__)

# Steps of this launch: let kernels be chosen and memory be allocated, then trace.
SKIPPED, WARMUP, TRACED = 8, 2, 4
_ROWS = 30


class StepProfiler:
    """Traces steps 11 to 14 of a launch into ``folder/rankN.json`` and sums up in ``rankN.txt``.

    Without ``enabled`` it does nothing and costs nothing.
    """

    def __init__(self, folder: Path, rank: int, *, enabled: bool) -> None:
        self._folder, self._rank = folder, rank
        self._profile: profile | None = None
        if enabled:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(
                activities=activities,
                schedule=schedule(wait=SKIPPED, warmup=WARMUP, active=TRACED, repeat=1),
                on_trace_ready=self._write,
                acc_events=True,
            )
            self._profile.start()

    def step(self) -> None:
        """The end of a training step."""
        if self._profile is not None:
            self._profile.step()
            if self._profile.step_num == SKIPPED + WARMUP + TRACED:
                self._profile.stop()
                self._profile = None

    def close(self) -> None:
        """Give up where training ended first."""
        if self._profile is not None:
            done = self._profile.step_num
            self._profile.on_trace_ready = None
            self._profile.stop()
            self._profile = None
            logger.warning(
                "profile=true: training ended after %d steps, before the %d of a trace.",
                done,
                SKIPPED + WARMUP + TRACED,
            )

    def _write(self, traced: profile) -> None:
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"rank{self._rank}.json"
        traced.export_chrome_trace(str(path))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        sums = traced.key_averages().table(sort_by=order, row_limit=_ROWS)
        path.with_suffix(".txt").write_text(sums)
        logger.info("Trace of %d steps: %s (open in ui.perfetto.dev)", TRACED, path)
