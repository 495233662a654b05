"""Small real runs for checks: a trainer in this process, or ``train.py`` as a person starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch

from attnorm.config import compose
from attnorm.distributed import current_process
from attnorm.run.prepare import prepare
from attnorm.run.train import build_trainer
from attnorm.training.trainer import Trainer
from tests.gpu.report import Report, Setting

ROOT = Path(__file__).parents[2]


def network(setting: Setting, arch: str = "resnet50") -> list[str]:
    """Overrides: a network of the paper, or timm's smallest one."""
    if not setting.small:
        return [f"arch={arch}", "data.image_size=64", "data.resize_size=64"]
    sites = r"arch.attentive_sites='layer(\d)\.\d+\.bn2'"
    tiny = ["arch=timm", "arch.timm_model=test_resnet", sites]
    return [*tiny, "data.image_size=32", "data.resize_size=32"]


def synthetic(setting: Setting, batch: int = 32, classes: int = 10) -> list[str]:
    """Overrides: one random batch, again and again."""
    batch = 4 if setting.small else batch
    return [
        *("name=check", "data=folder", "loader=synthetic", f"data.num_classes={classes}"),
        *(f"loader.images={64 * batch}", f"batch_size={batch}", "epochs=1000"),
        *("tracking.tensorboard=false", f"device={setting.device.type}"),
    ]


def digits(setting: Setting) -> list[str]:
    """Overrides: a run of two short epochs on the built-in digits."""
    return [
        *(*network(setting), "norm=an", "data=digits", "loader=torch", "data.workers=0"),
        *("batch_size=64", "epochs=2", "tracking.log_every=1", "tracking.tensorboard=false"),
        *("checkpoint.every_steps=3", f"device={setting.device.type}"),
    ]


@contextmanager
def trainer(folder: Path, *overrides: str) -> Iterator[Trainer]:
    """The trainer that ``train.py`` builds of these arguments."""
    config = compose(list(overrides))
    process = current_process(config.device)
    with ExitStack() as loaders:
        yield build_trainer(prepare(config, process), process, folder, loaders)
    torch.use_deterministic_algorithms(False)


class Launch:
    """``train.py`` with these arguments in ``folder``, in a session of its own."""

    def __init__(
        self, folder: Path, *arguments: str, processes: int = 1, launcher: tuple[str, ...] = ()
    ) -> None:
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        if processes > 1:
            torchrun = ["-m", "torch.distributed.run", "--standalone", *launcher]
            command[1:1] = [*torchrun, f"--nproc-per-node={processes}"]
        self._output = folder / "output.txt"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONWARNINGS": "ignore"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self._output.read_text(errors="replace")

    def end(self, report: Report, wanted: int = 0) -> str:
        """What it said, when it has ended as it should."""
        status = self.process.wait()
        fault = f"exit status {status}, not {wanted}: {self.said.strip()[-400:]}"
        report.require(status == wanted, fault)
        return self.said

    def wait_until(self, holds: Callable[[], bool], seconds: float = 120) -> bool:
        """Whether it came true before the time was over and the process had ended."""
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            if holds():
                return True
            time.sleep(0.02)
        return holds()

    def children(self) -> list[int]:
        """Processes that torchrun started, in the order of their ranks."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def close(self) -> None:
        """Nothing of it goes on."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def launched(
    folder: Path, *arguments: str, processes: int = 1, launcher: tuple[str, ...] = ()
) -> Iterator[Launch]:
    """A launch that has ended with the block, whatever happens there."""
    launch = Launch(folder, *arguments, processes=processes, launcher=launcher)
    try:
        yield launch
    finally:
        launch.close()


def losses(run: Path) -> list[float]:
    """Those that a run has recorded so far."""
    record = run / "metrics.jsonl"
    if not record.exists():
        return []
    whole = [line for line in record.read_text().splitlines(keepends=True) if line.endswith("\n")]
    lines = [json.loads(line) for line in whole]
    return [line["loss"] for line in lines if line["kind"] == "train"]
