"""Train every row of Table 1, one run after another, and write the report.

  python scripts/run_table1.py                            the scaled-down table, on built-in digits
  python scripts/run_table1.py --data imagenet --data-root /data/imagenet [--nproc-per-node 8]

Start it again after an interruption: finished runs are kept, a half-finished one continues, one
that failed is tried again. Further key=value arguments go to every run.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

import yaml
from rich.console import Console

from attnorm import config as schema
from attnorm.errors import UserError, exit_on_user_error
from attnorm.reporting import per_class
from attnorm.reporting.report import summary, write_report
from attnorm.reporting.table1 import build_table
from attnorm.reporting.table1_paper import ROWS
from attnorm.tracking import write_json
from attnorm.training.interrupts import EXIT_INTERRUPTED

ROOT = Path(__file__).resolve().parent.parent
CONSOLE = Console(highlight=False, soft_wrap=True)
ALL_ROWS = [f"{row.arch}_{row.norm}" for row in ROWS]
DEFAULT_RUNS = {"digits": Path("runs/table1-small"), "imagenet": Path("runs/table1")}
# At 32² all but the first stages of MobileNet-v2 see a few pixels, and it may diverge at the start.
LARGER_DIGITS = {"mobilenetv2": ["data.image_size=64", "data.resize_size=64"]}
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Run:
    """One row with one seed."""

    name: str
    folder: Path
    command: tuple[str, ...]


def plan(arguments: argparse.Namespace, runs: Path) -> list[Run]:
    """Every run, all rows of a seed before the next seed: the first table is whole early."""
    return [
        _plan_run(row, seed, arguments, runs)
        for seed in range(arguments.seeds)
        for row in arguments.rows
    ]


def _plan_run(row: str, seed: int, arguments: argparse.Namespace, runs: Path) -> Run:
    arch, norm = row.split("_")
    name = f"{row}_seed{seed}"
    if arguments.data == "digits":
        experiment, processes = "small", 1
        settings = [f"+experiment={experiment}", f"arch={arch}", f"norm={norm}"]
        settings += LARGER_DIGITS.get(arch, [])
    else:
        # The paper's 4 GPUs × 128 images, and 8 × 32 for SN (Table 1).
        experiment, processes = f"table1/{row}", 8 if norm == "sn" else 4
        settings = [f"+experiment={experiment}", f"data.root={arguments.data_root}"]
    wanted = arguments.nproc_per_node or processes
    settings += _same_global_batch(experiment, processes, wanted)
    settings += [f"seed={seed}", f"name={name}", f"hydra.run.dir={runs / name}"]
    launcher = [sys.executable]
    if wanted > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={wanted}"]
    command = (*launcher, str(ROOT / "train.py"), *settings, *arguments.overrides)
    return Run(name, runs / name, command)


def _same_global_batch(experiment: str, planned: int, wanted: int) -> list[str]:
    """Overrides that keep the experiment's images per step on another number of processes.

    Fewer processes accumulate gradients, so that batch statistics stay those of the experiment.
    """
    path = schema.config_directory() / "experiment" / f"{experiment}.yaml"
    batch_size = yaml.safe_load(path.read_text())["batch_size"]
    if planned % wanted == 0:
        return [f"grad_accumulation={planned // wanted}"] if wanted < planned else []
    if batch_size * planned % wanted == 0:
        return [f"batch_size={batch_size * planned // wanted}"]
    raise UserError(
        f"--nproc-per-node {wanted}: {batch_size * planned} images a step cannot be shared by"
        f" {wanted} processes; use a power of 2."
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

    def is_done(self, run: Run) -> bool:
        """Whether the run finished under this very command."""
        result = run.folder / "result.json"
        same = self.record.get(run.name, {}).get("command") == list(run.command)
        if not same or not result.exists():
            return False
        finished: bool = json.loads(result.read_text())["status"] == "finished"
        if finished:  # perhaps after its queue was killed
            self._note(run, "finished")
        return finished

    def start(self, run: Run, lock: IO[str]) -> str:
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

    def forward(self, number: int, _frame: FrameType | None) -> None:
        """Stop the run that goes on, which saves its checkpoint, and start no other."""
        self.stopped = True
        if self._child is not None:
            self._child.send_signal(number)

    def _note(self, run: Run, status: str, **values: Any) -> None:
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
            CONSOLE.print(f"Waiting for the queue that is at work in {runs} already.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def run_all(planned: list[Run], runs: Path) -> int:
    """The exit status: 0 all finished, 1 some failed, 75 interrupted."""
    failed = []
    with only_queue(runs) as lock:
        queue = Queue(runs)
        for number in FORWARDED:
            signal.signal(number, queue.forward)
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


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=tuple(DEFAULT_RUNS), default="digits")
    parser.add_argument("--data-root", type=Path, help="folder with train/ and val/ of ImageNet")
    parser.add_argument("--runs", type=Path, help="folder of the runs (runs/table1[-small])")
    parser.add_argument("--seeds", type=int, default=1, help="runs per row (1)")
    parser.add_argument(
        "--nproc-per-node",
        type=int,
        help="processes, one per GPU; the global batch stays the paper's (4, for SN 8; digits 1)",
    )
    parser.add_argument("--rows", default=",".join(ALL_ROWS), help="some of: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    arguments.rows = arguments.rows.split(",")
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Refuse what no run could do."""
    for row in arguments.rows:
        if row not in ALL_ROWS:
            raise UserError(f"--rows {row} is not known: choose from {', '.join(ALL_ROWS)}.")
    for option in ("seeds", "nproc_per_node"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} {value}: it must be at least 1.")
    if arguments.data == "imagenet" and arguments.data_root is None:
        raise UserError("--data imagenet needs --data-root FOLDER, with train/ and val/.")
    if arguments.data == "digits" and arguments.data_root is not None:
        raise UserError("--data-root is for --data imagenet: the digits are built in.")
    for override in arguments.overrides:
        if "=" not in override:
            raise UserError(f"{override!r} is not key=value.")


def main() -> int:
    arguments = parse()
    with exit_on_user_error():
        check(arguments)
        runs: Path = arguments.runs or DEFAULT_RUNS[arguments.data]
        planned = plan(arguments, runs)
        if arguments.dry_run:
            CONSOLE.print("\n".join(shlex.join(run.command) for run in planned), markup=False)
            return 0
        started = time.monotonic()
        status = run_all(planned, runs)
        if status != EXIT_INTERRUPTED:
            table = build_table(runs, arguments.data)
            per_class.evaluate_missing([result for row in table.rows for result in row.results])
            write_report(table, runs / "report")
            CONSOLE.print("\n" + summary(table), markup=False)
            CONSOLE.print(f"report: {runs / 'report' / 'index.html'}", markup=False)
        CONSOLE.print(f"took {(time.monotonic() - started) / 60:.1f} min")
        return status


if __name__ == "__main__":
    sys.exit(main())
