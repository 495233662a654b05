"""Many runs, one after another: what ran, what stops it, and who trains which."""

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

from rich.console import Console

from attnorm.files import write_json
from attnorm.reporting.claims import claim
from attnorm.training.interrupts import EXIT_INTERRUPTED

CONSOLE = Console(highlight=False, soft_wrap=True)
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WAIT_SECONDS = 5.0  # before asking again for runs that others train


@dataclass(frozen=True)
class PlannedRun:
    """One run of a table: its name there, its folder, and the command that trains it."""

    name: str
    folder: Path
    command: tuple[str, ...]


def launcher(processes: int) -> list[str]:
    """``attnorm train`` on so many processes of this machine."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *(torchrun if processes > 1 else []), "-m", "attnorm", "train"]


class Queue:
    """The record of what ran, in ``queue/NAME.json``, and the signals that stop it."""

    def __init__(self, runs: Path) -> None:
        self.folder = runs / "queue"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stopped = False
        self._child: subprocess.Popen[bytes] | None = None

    def record(self, run: PlannedRun) -> dict[str, Any]:
        """What is known of a run: status, command, exit_status, message, seconds."""
        path = self.folder / f"{run.name}.json"
        record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return record

    def is_done(self, run: PlannedRun) -> bool:
        """Whether the run finished under this very command."""
        result = run.folder / "result.json"
        same = self.record(run).get("command") == list(run.command)
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
        errors = self.folder / f"{run.name}.stderr"
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
        record = {"status": status, "command": list(run.command), **values}
        write_json(self.folder / f"{run.name}.json", record)


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
    """One run after another, by the only queue of the folder.

    Returns:
        The exit status: 0 all finished, 1 some failed, 75 interrupted.
    """
    with only_queue(runs) as lock:
        queue = Queue(runs)
        with queue.stoppable():
            for position, run in enumerate(planned, start=1):
                run_one(queue, run, f"[{position}/{len(planned)}] {run.name}", lock)
                if queue.stopped:
                    return _told_to_stop()
    return outcome(queue, planned)


def run_shared(planned: Sequence[PlannedRun], runs: Path) -> int:
    """The same by any number of queues, on this machine and others that see the folder.

    Each run is trained by one of them: by the first that claims it. What is left at the end belongs
    to others; this one waits for it, and takes over what a machine that died has left.
    """
    queue = Queue(runs)
    waiting: list[PlannedRun] = []
    with queue.stoppable():
        left = list(planned)
        while left:
            for run in left:
                with claim(queue.folder / f"{run.name}.claim", run.folder) as mine:
                    if mine is None:
                        continue
                    label = f"[{planned.index(run) + 1}/{len(planned)}] {run.name}"
                    run_one(queue, run, label, mine)
                    left = [other for other in left if other is not run]
                if queue.stopped:
                    return _told_to_stop()
                break
            else:
                if left != waiting:
                    names = ", ".join(run.name for run in left)
                    CONSOLE.print(f"Waiting for other queues: {names}", markup=False)
                    waiting = list(left)
                time.sleep(WAIT_SECONDS)
                if queue.stopped:
                    return _told_to_stop()
    return outcome(queue, planned)


def run_one(queue: Queue, run: PlannedRun, label: str, lock: IO[str]) -> None:
    """Train one run if it is not finished, and tell how it went."""
    if queue.is_done(run):
        CONSOLE.print(f"{label}: finished before", markup=False)
        return
    CONSOLE.print(f"\n{label}\n$ {shlex.join(run.command)}", markup=False, style="bold")
    if queue.start(run, lock) == "failed":
        message = queue.record(run)["message"]
        CONSOLE.print(f"{label} failed: {message}", markup=False, style="red")


def outcome(queue: Queue, planned: Sequence[PlannedRun]) -> int:
    """What failed, once more at the end: the exit status."""
    failed = [run for run in planned if queue.record(run).get("status") == "failed"]
    for run in failed:
        CONSOLE.print(
            f"{run.name} failed: {queue.record(run)['message']}"
            f" (see {queue.folder / run.name}.stderr)",
            markup=False,
        )
    return int(bool(failed))


def _told_to_stop() -> int:
    CONSOLE.print("Stopped; the same command continues.")
    return EXIT_INTERRUPTED
