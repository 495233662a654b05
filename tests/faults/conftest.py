"""Runs that are small enough to be killed twenty times, started as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from attnorm.training import checkpoint
from attnorm.training.meter import PHASES
from tests.conftest import ROOT, TINY_RESNET, write_photos

# Six epochs of six steps, a checkpoint every second step: there is nearly always one going on.
SETTINGS = [
    *TINY_RESNET,
    *("norm=an", "data=folder", "data.image_size=32", "data.resize_size=32"),
    *("epochs=6", "batch_size=6", "optim.lr=0.02", "loader=torch", "data.workers=0"),
    *("tracking.log_every=2", "tracking.tensorboard=false", "checkpoint.every_steps=2"),
    *("deterministic=true", "ema.decay=0.9", "grad_accumulation=1"),
]

# What the clock says differs between two runs of the same numbers.
TIMINGS = {
    *("time", "images_per_second", "eta_seconds", "peak_memory_mib"),
    *("data_wait", "slowest_data_wait", *PHASES),
}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 × 12 training and 3 × 4 validation JPEGs of noise in three colours."""
    return write_photos(tmp_path_factory.mktemp("images"), val_images=4)


FAULTS: pytest.StashKey[list[tuple[str, int, str]]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FAULTS] = []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table of ``docs/reliability.md``."""
    faults = config.stash[FAULTS]
    if faults:
        terminalreporter.section("faults")
        terminalreporter.write_line("| what was done | times | lost |\n|---|---|---|")
        for done, times, lost in faults:
            terminalreporter.write_line(f"| {done} | {times} | {lost} |")


class Launch:
    """A training process of its own session, so that it can be killed with all its children.

    Args:
        processes: above 1 they are started by torchrun.
        meet: address where the torchruns of two nodes meet; None for one node.
    """

    def __init__(
        self, folder: Path, arguments: list[str], processes: int = 1, meet: str | None = None
    ) -> None:
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        if processes > 1:
            nodes = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint={meet}", "--rdzv-id=1"]
            launcher = ["-m", "torch.distributed.run", "--max-restarts=3"]
            launcher += nodes if meet else ["--standalone"]
            command[1:1] = [*launcher, f"--nproc-per-node={processes}"]
        self.output = folder / "output.txt"
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL, as the kernel's out-of-memory killer would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, timeout: float = 120) -> int:
        return self.process.wait(timeout)

    def children(self) -> list[int]:
        """Processes that torchrun started, in the order of their ranks."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    @property
    def text(self) -> str:
        return self.output.read_text()


@pytest.fixture
def launch(tmp_path: Path, images: Path) -> Iterator[Callable[..., Launch]]:
    """Start ``train.py`` in ``tmp_path`` with the small run's settings and more."""
    launches: list[Launch] = []

    def start(*arguments: str, processes: int = 1, meet: str | None = None) -> Launch:
        settings = [*SETTINGS, f"data.root={images}", *arguments]
        launches.append(Launch(tmp_path, settings, processes, meet))
        return launches[-1]

    yield start
    for started in launches:
        if started.process.poll() is None:
            started.kill()


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Report what was done to a run, how often, what was lost; printed as a table at the end."""

    def report(done: str, times: int, lost: str = "nothing") -> None:
        request.config.stash[FAULTS].append((done, times, lost))

    return report


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Poll until ``condition`` holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl`` of one kind, none if there is no file yet."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:  # being written
            break
    return [entry for entry in entries if entry["kind"] == kind]


def assert_same_end(run: Path, other: Path) -> None:
    """Bitwise the same weights, average, optimizer, scores, best checkpoint and curves."""
    for name in ("last.pt", "best.pt"):
        one, two = (checkpoint.load_checkpoint(folder / name) for folder in (run, other))
        assert one["step"] == two["step"]
        assert one["scores"] == two["scores"]
        for key in ("model", "ema", "optimizer"):
            _assert_equal(one[key], two[key], f"{name}:{key}")
    for kind, skipped in (
        ("train", TIMINGS),
        ("eval", {"time"}),
    ):
        kept = [
            [{k: v for k, v in line.items() if k not in skipped} for line in lines(folder, kind)]
            for folder in (run, other)
        ]
        assert kept[0] == kept[1]


def _assert_equal(one: Any, two: Any, where: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            _assert_equal(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(two), where
        for index, (left, right) in enumerate(zip(one, two, strict=True)):
            _assert_equal(left, right, f"{where}[{index}]")
    else:
        assert one == two, where
