"""Every row of Table 1 trained, one run after another: what is planned, what ran, what stops it."""

from __future__ import annotations

import fcntl
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

import yaml
from rich.console import Console

from attnorm.config import config_directory
from attnorm.errors import UserError
from attnorm.files import write_json
from attnorm.reporting.table1 import per_class
from attnorm.reporting.table1.paper import ROWS
from attnorm.reporting.table1.report import summary, write_report
from attnorm.reporting.table1.table import build_table
from attnorm.training.interrupts import EXIT_INTERRUPTED

CONSOLE = Console(highlight=False, soft_wrap=True)
ALL_ROWS = tuple(f"{row.arch}_{row.norm}" for row in ROWS)
DEFAULT_RUNS = {"digits": Path("runs/table1-small"), "imagenet": Path("runs/table1")}
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class TableRuns:
    """Which rows are trained, how often, and how.

    Attributes:
        data: digits or imagenet.
        data_root: ImageNet's folder.
        processes: of each run; None for the paper's number (digits: 1).
        overrides: ``key=value`` for every run.
    """

    data: str
    runs: Path
    data_root: Path | None = None
    rows: Sequence[str] = ALL_ROWS
    seeds: int = 1
    processes: int | None = None
    overrides: Sequence[str] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if row not in ALL_ROWS:
                raise UserError(f"--rows {row} is not known: choose from {', '.join(ALL_ROWS)}.")
        for option, value in (("--seeds", self.seeds), ("--nproc-per-node", self.processes)):
            if value is not None and value < 1:
                raise UserError(f"{option} {value}: it must be at least 1.")
        if self.data == "imagenet" and self.data_root is None:
            raise UserError("--data imagenet needs --data-root FOLDER, with train/ and val/.")
        if self.data == "digits" and self.data_root is not None:
            raise UserError("--data-root is for --data imagenet: the digits are built in.")
        for override in self.overrides:
            if "=" not in override:
                raise UserError(f"{override!r} is not key=value.")


@dataclass(frozen=True)
class PlannedRun:
    """One row with one seed."""

    name: str
    folder: Path
    command: tuple[str, ...]


def train_table(wanted: TableRuns) -> int:
    """Train what is not finished yet, and write the report.

    Returns:
        The exit status: 0 all finished, 1 some failed, 75 interrupted.
    """
    started = time.monotonic()
    status = run_all(plan_runs(wanted), wanted.runs)
    if status != EXIT_INTERRUPTED:
        table = build_table(wanted.runs, wanted.data)
        per_class.evaluate_missing([result for row in table.rows for result in row.results])
        write_report(table, wanted.runs / "report")
        CONSOLE.print("\n" + summary(table), markup=False)
        CONSOLE.print(f"report: {wanted.runs / 'report' / 'index.html'}", markup=False)
    CONSOLE.print(f"took {(time.monotonic() - started) / 60:.1f} min")
    return status


def show_commands(wanted: TableRuns) -> int:
    """Print the commands that would train, for copying; the exit status is 0."""
    commands = [shlex.join(run.command) for run in plan_runs(wanted)]
    CONSOLE.out(*commands, sep="\n", highlight=False)
    return 0


def plan_runs(wanted: TableRuns) -> list[PlannedRun]:
    """Every run, all rows of a seed before the next seed: the first table is whole early."""
    return [_plan_run(row, seed, wanted) for seed in range(wanted.seeds) for row in wanted.rows]


def _plan_run(row: str, seed: int, wanted: TableRuns) -> PlannedRun:
    arch, norm = row.split("_")
    name = f"{row}_seed{seed}"
    folder = wanted.runs / name
    if wanted.data == "digits":
        experiment, papers = "small", 1
        settings = [f"+experiment={experiment}", f"arch={arch}", f"norm={norm}"]
    else:
        # The paper's 4 GPUs × 128 images, and 8 × 32 for SN (Table 1).
        experiment, papers = f"table1/{row}", 8 if norm == "sn" else 4
        settings = [f"+experiment={experiment}", f"data.root={wanted.data_root}"]
    processes = wanted.processes or papers
    settings += _same_global_batch(experiment, papers, processes)
    settings += [f"seed={seed}", f"name={name}", f"hydra.run.dir={folder}"]
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = (*launcher, "-m", "attnorm", "train", *settings, *wanted.overrides)
    return PlannedRun(name, folder, command)


def _same_global_batch(experiment: str, papers: int, processes: int) -> list[str]:
    """Overrides that keep the experiment's images per step on another number of processes.

    Fewer processes accumulate gradients, so that batch statistics stay those of the experiment.
    """
    path = config_directory() / "experiment" / f"{experiment}.yaml"
    batch_size = yaml.safe_load(path.read_text())["batch_size"]
    if papers % processes == 0:
        return [f"grad_accumulation={papers // processes}"] if processes < papers else []
    if batch_size * papers % processes == 0:
        return [f"batch_size={batch_size * papers // processes}"]
    raise UserError(
        f"--nproc-per-node {processes}: {batch_size * papers} images a step cannot be shared by"
        f" {processes} processes; use a power of 2."
    )


class Queue:
    """The record of what ran, in ``queue.json``, and the signals that stop it."""

    def __init__(self, runs: Path) -> None:
        self.path = runs / "queue.json"
        self.logs = runs / "queue"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.record: dict[str, Any] = {}
        if self.path.exists():
            self.record = json.loads(self.path.read_text())
        self.stopped = False
        self._child: subprocess.Popen[bytes] | None = None

    def is_done(self, run: PlannedRun) -> bool:
        """Whether the run finished under this very command."""
        result = run.folder / "result.json"
        same = self.record.get(run.name, {}).get("command") == list(run.command)
        if not same or not result.exists():
            return False
        finished: bool = json.loads(result.read_text())["status"] == "finished"
        if finished:  # perhaps after its queue was killed
            self._note(run, "finished")
        return finished

    def start(self, run: PlannedRun, lock: IO[str]) -> str:
        """Run it to its end; returns finished, failed or interrupted."""
        self._note(run, "running")
        started = time.monotonic()
        errors = self.logs / f"{run.name}.stderr"
        with errors.open("wb") as stderr:
            # A session of its own: of a Ctrl-C it gets what is forwarded, once. The lock stays
            # held while it lives, even if this process is killed.
            self._child = subprocess.Popen(
                run.command, stderr=stderr, start_new_session=True, pass_fds=[lock.fileno()]
            )
            code = self._child.wait()
        self._child = None
        lines = errors.read_text(errors="replace").strip().splitlines()
        self.stopped = self.stopped or code == EXIT_INTERRUPTED
        status = "finished" if code == 0 else "interrupted" if self.stopped else "failed"
        message = _last_words(lines) if status == "failed" else None
        seconds = round(time.monotonic() - started, 1)
        self._note(run, status, exit_status=code, message=message, seconds=seconds)
        return status

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """While it lasts, signals that end this process end the run that goes on instead."""
        before = {number: signal.signal(number, self._forward) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        """Stop the run that goes on, which saves its checkpoint, and start no other."""
        self.stopped = True
        if self._child is not None:
            self._child.send_signal(number)

    def _note(self, run: PlannedRun, status: str, **values: Any) -> None:
        self.record[run.name] = {"status": status, "command": list(run.command), **values}
        write_json(self.path, self.record)


def _last_words(lines: list[str]) -> str:
    """The error of a run: its message to the user, or the last line of a traceback."""
    messages = [line for line in lines if line.startswith("error: ")]
    return (messages or lines or ["no message"])[-1]


@contextmanager
def only_queue(runs: Path) -> Iterator[IO[str]]:
    """One queue per folder; a second one waits, also for a run whose queue was killed."""
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / ".queue.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            CONSOLE.print(f"Waiting for the queue that is at work in {runs} already.", markup=False)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def run_all(planned: Sequence[PlannedRun], runs: Path) -> int:
    """The exit status: 0 all finished, 1 some failed, 75 interrupted."""
    failed = []
    with only_queue(runs) as lock:
        queue = Queue(runs)
        with queue.stoppable():
            for position, run in enumerate(planned, start=1):
                label = f"[{position}/{len(planned)}] {run.name}"
                if queue.is_done(run):
                    CONSOLE.print(f"{label}: finished before", markup=False)
                    continue
                CONSOLE.print(f"\n{label}\n$ {shlex.join(run.command)}", markup=False, style="bold")
                status = queue.start(run, lock)
                if status == "failed":
                    failed.append(run.name)
                    message = queue.record[run.name]["message"]
                    CONSOLE.print(f"{label} failed: {message}", markup=False, style="red")
                if queue.stopped:
                    CONSOLE.print("Stopped; the same command continues.")
                    return EXIT_INTERRUPTED
    for name in failed:
        CONSOLE.print(
            f"{name} failed: {queue.record[name]['message']} (see {queue.logs / name}.stderr)",
            markup=False,
        )
    return int(bool(failed))
