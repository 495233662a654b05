"""Two GPUs of one machine: whose contexts they hold, shared statistics, the same losses as one."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from tests.gpu.report import Report, Setting
from tests.gpu.runs import ROOT, digits, launched, losses

MOST_ERROR = 1e-3  # shared statistics beside one process, in float32
MOST_LOSS_DIFFERENCE, STEPS_COMPARED = 1e-2, 5


def run(setting: Setting, report: Report) -> None:
    in_one_launch(setting, report)
    same_losses(setting, report)


def in_one_launch(setting: Setting, report: Report) -> None:
    """What two processes find of themselves (``tests.gpu.pair``)."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pair.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node=2", "-m", "tests.gpu.pair", str(out), setting.device.type]
        command += ["small"] if setting.small else []
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not out.exists():
            report.require(False, f"tests.gpu.pair: status {done.returncode}: {done.stderr[-600:]}")
            return
        found = json.loads(out.read_text())
    contexts = found["foreign contexts"]
    report.figure("contexts on the other GPU after a checkpoint", contexts)
    report.require(not any(contexts), f"after a checkpoint ranks hold foreign contexts: {contexts}")
    report.figure("sync_bn beside one process, relative error", found["sync_bn"])
    report.require(found["sync_bn"] <= MOST_ERROR, f"sync_bn differs by {found['sync_bn']:.2g}")
    report.figure("share of communication", found["communication"])


def same_losses(setting: Setting, report: Report) -> None:
    """Two processes of half the batch, with shared statistics, go where one goes."""
    common = [*digits(setting), "epochs=1", "precision=fp32"]
    common += ["optim.lr=0.001"]  # steps that a rounding error does not grow in
    curves = []
    with tempfile.TemporaryDirectory() as name:
        for processes in (1, 2):
            own = [f"batch_size={64 // processes}", "train.sync_bn=true", f"name=on{processes}"]
            with launched(Path(name), *common, *own, processes=processes) as launch:
                launch.end(report)
            curves.append(losses(Path(name) / "runs" / f"on{processes}")[:STEPS_COMPARED])
    for one, two in pairwise(curves):
        pairs = list(zip(one, two, strict=True))
        worst = max((abs(a - b) / a for a, b in pairs), default=float("inf"))
        report.figure("losses of two beside one, largest difference", worst)
        report.require(worst <= MOST_LOSS_DIFFERENCE, f"losses of two differ by {worst:.2g}")
