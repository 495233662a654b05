"""One of two processes stalls, and is named; one is killed, and torchrun's restart goes on."""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

from attnorm.training.checkpoint import load_checkpoint
from tests.gpu.checks.whole_runs import COMPARED, differences
from tests.gpu.report import Report, Setting
from tests.gpu.runs import digits, launched, losses


def run(setting: Setting, report: Report) -> None:
    with tempfile.TemporaryDirectory() as name:
        stalled(setting, Path(name), report)
    with tempfile.TemporaryDirectory() as name:
        killed(setting, Path(name), report)


def stalled(setting: Setting, folder: Path, report: Report) -> None:
    """SIGSTOP: the other one says who is missing before NCCL's watchdog ends it."""
    minutes = 0.05 if setting.small else 0.5
    settings = [*digits(setting), "batch_size=32", "epochs=1000", "name=stalled"]
    settings += [f"timeout_minutes={minutes}"]
    with launched(folder, *settings, processes=2) as launch:
        run = folder / "runs" / "stalled"
        launch.wait_until(lambda: len(losses(run)) >= 3)
        victim = launch.children()[1]
        os.kill(victim, signal.SIGSTOP)
        try:
            named = launch.wait_until(lambda: "rank 1 no longer answered" in launch.said, 120)
        finally:
            with suppress(ProcessLookupError):  # torchrun may have ended it
                os.kill(victim, signal.SIGKILL)
        report.figure("the stalled rank is named", named)
        report.require(named, f"nobody names the stalled rank: {launch.said.strip()[-400:]}")


def killed(setting: Setting, folder: Path, report: Report) -> None:
    """SIGKILL: all start again from the checkpoint and end where an undisturbed run ends."""
    settings = [*digits(setting), "batch_size=32", "deterministic=true"]
    with launched(folder, *settings, "name=whole", processes=2) as whole:
        whole.end(report)
    again = ("--max-restarts=1",)
    with launched(folder, *settings, "name=killed", processes=2, launcher=again) as launch:
        run = folder / "runs" / "killed"
        launch.wait_until(lambda: len(losses(run)) >= 5)
        os.kill(launch.children()[1], signal.SIGKILL)
        launch.end(report)
    ends = [load_checkpoint(folder / "runs" / run / "last.pt") for run in ("whole", "killed")]
    different = [
        f"{key}{place}" for key in COMPARED for place in differences(ends[0][key], ends[1][key])
    ]
    report.figure("tensors that differ after a kill", len(different))
    report.require(ends[0]["step"] == ends[1]["step"], "the killed run ends at another step")
