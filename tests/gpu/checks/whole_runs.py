"""``train.py`` with deterministic=true: a whole run, and one that is stopped and continued."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from attnorm.training.checkpoint import load_checkpoint
from attnorm.training.interrupts import EXIT_INTERRUPTED
from tests.gpu.report import Report, Setting
from tests.gpu.runs import digits, launched, losses

# The state of a run that has to be the same; the clock's share of it is not.
COMPARED = ("model", "optimizer", "scaler", "ema", "scores", "epoch", "step")


def run(setting: Setting, report: Report) -> None:
    settings = [*digits(setting), "ema.decay=0.9", "deterministic=true"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with launched(folder, *settings, "name=whole") as whole:
            said = whole.end(report)
        objection = "deterministic implementation"
        report.require(objection not in said, "an operation has no deterministic implementation")
        with launched(folder, *settings, "name=stopped") as stopped:
            stopped.wait_until(lambda: len(losses(folder / "runs" / "stopped")) >= 5)
            stopped.process.send_signal(signal.SIGTERM)
            stopped.end(report, EXIT_INTERRUPTED)
        with launched(folder, *settings, "name=stopped") as continued:
            continued.end(report)
        ends = [load_checkpoint(folder / "runs" / run / "last.pt") for run in ("whole", "stopped")]
    different = [
        f"{key}{place}" for key in COMPARED for place in differences(ends[0][key], ends[1][key])
    ]
    report.figure("steps", ends[0]["step"])
    report.figure("tensors that differ", len(different))
    report.require(not different, f"differ: {', '.join(different[:5])}")


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two states are not the same, bit by bit."""
    if isinstance(one, Tensor):
        # By bytes: NaN is itself, and 0 is not -0.
        same = one.dtype == other.dtype and one.shape == other.shape
        same = same and one.numpy().tobytes() == other.numpy().tobytes()
        return [] if same else [place]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [place]
        return [x for key in one for x in differences(one[key], other[key], f"{place}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [place]
        return [
            x
            for i, pair in enumerate(zip(one, other, strict=True))
            for x in differences(*pair, f"{place}.{i}")
        ]
    return [] if one == other else [place]
