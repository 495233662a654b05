"""The queue behind ``make table1-small``: real runs, one that fails, a signal in the middle."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from attnorm.reporting.queue import PlannedRun, run_all
from attnorm.reporting.table1.table import build_table
from tests.conftest import ROOT
from tests.script import WITHOUT_TORCH, run_script

ROWS = ["--rows", "mobilenetv2_an"]
# 4 epochs of 2 steps, without data: seconds, and long enough to be stopped in the middle.
TINY = ["epochs=4", "batch_size=16", "loader=synthetic", "loader.images=32"]
TINY += ["tracking.log_every=1", "tracking.tensorboard=false", "optim.lr=0.01"]


def _queue(runs: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts" / "run_table1.py"), "--runs", str(runs)]
    return subprocess.Popen([*command, *ROWS, *TINY], stdout=subprocess.PIPE, text=True)


def _wait_for(path: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def _result(runs: Path, row: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((runs / f"{row}_seed0" / "result.json").read_text())
    return result


def _statuses(runs: Path) -> dict[str, str]:
    records = {path.stem: json.loads(path.read_text()) for path in runs.glob("queue/*.json")}
    return {name: record["status"] for name, record in records.items()}


def test_a_queue_stopped_in_the_middle_goes_on_and_done_runs_are_kept(tmp_path: Path) -> None:
    queue = _queue(tmp_path)
    _wait_for(tmp_path / "mobilenetv2_an_seed0" / "last.pt")
    queue.send_signal(signal.SIGTERM)
    output, _ = queue.communicate(timeout=60)
    assert queue.returncode == 75, output
    assert "Stopped; the same command continues." in output
    assert _statuses(tmp_path) == {"mobilenetv2_an_seed0": "interrupted"}
    assert 1 <= _result(tmp_path, "mobilenetv2_an")["epochs"] < 4
    assert not (tmp_path / "report").exists()

    done = run_script("run_table1", "--runs", str(tmp_path), *ROWS, *TINY)
    assert done.returncode == 0, done.stderr
    result = _result(tmp_path, "mobilenetv2_an")
    assert (result["status"], result["restarts"]) == ("finished", 1)
    assert (tmp_path / "report" / "index.html").exists()

    modified = (tmp_path / "mobilenetv2_an_seed0" / "last.pt").stat().st_mtime_ns
    done = run_script("run_table1", "--runs", str(tmp_path), *ROWS, *TINY)
    assert done.returncode == 0, done.stderr
    assert "[1/1] mobilenetv2_an_seed0: finished before" in done.stdout
    assert (tmp_path / "mobilenetv2_an_seed0" / "last.pt").stat().st_mtime_ns == modified


def test_a_failed_run_is_told_and_the_rest_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = (sys.executable, "-m", "attnorm", "train")
    bad = (*train, "epochs=0", f"hydra.run.dir={tmp_path / 'a'}")
    runs = [PlannedRun("a", tmp_path / "a", bad), PlannedRun("b", tmp_path / "b", ("true",))]
    before = signal.getsignal(signal.SIGTERM)
    assert run_all(runs, tmp_path) == 1
    assert signal.getsignal(signal.SIGTERM) == before, "its handlers do not outlive it"
    assert capsys.readouterr().out.count("a failed: error: epochs=0 is not possible") == 2
    assert _statuses(tmp_path) == {"a": "failed", "b": "finished"}
    (failed,) = build_table(tmp_path, "digits").failed
    assert failed.message is not None
    assert failed.message.startswith("error: epochs=0")


KILLED = f"""{WITHOUT_TORCH}
import sys
from pathlib import Path
from attnorm.reporting.queue import PlannedRun, run_all
runs = Path(sys.argv[1])
run_all([PlannedRun("a", runs / "a", ("sleep", "60"))], runs)
"""


def _is_locked(runs: Path) -> bool:
    with (runs / ".queue.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_run_whose_queue_was_killed_keeps_others_from_its_folder(tmp_path: Path) -> None:
    queue = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    _wait_for(tmp_path / "queue" / "a.stderr")
    time.sleep(0.5)  # the run starts right after
    queue.kill()
    queue.wait()
    assert _is_locked(tmp_path)
    (orphan,) = [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and _holds(folder, tmp_path / ".queue.lock")
    ]
    os.kill(orphan, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while _is_locked(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _holds(process: Path, lock: Path) -> bool:
    try:
        return any(link.resolve() == lock for link in (process / "fd").iterdir())
    except OSError:  # it ended meanwhile, or is somebody else's
        return False


def test_the_small_table_is_eleven_runs_a_seed(tmp_path: Path) -> None:
    done = run_script("run_table1", "--dry-run", "--seeds", "2", "--runs", str(tmp_path / "runs"))
    commands = done.stdout.splitlines()
    assert len(commands) == 22
    assert all("+experiment=small" in command for command in commands)
    assert sum("seed=1" in command.split() for command in commands) == 11
    assert all("torch.distributed.run" not in command for command in commands)
    assert not (tmp_path / "runs").exists()


def test_commands_can_be_copied_into_a_shell(tmp_path: Path) -> None:
    runs = tmp_path / "odd räns"
    done = run_script("run_table1", "--dry-run", "--rows", "resnet50_an", "--runs", str(runs))
    words = shlex.split(done.stdout)
    assert words[:4] == [sys.executable, "-m", "attnorm", "train"]
    assert f"hydra.run.dir={runs / 'resnet50_an_seed0'}" in words


@pytest.mark.parametrize(
    ("processes", "an", "sn"),
    [
        (None, [], []),
        (2, ["grad_accumulation=2"], ["grad_accumulation=4"]),
        (8, ["batch_size=64"], []),
        (16, ["batch_size=32"], ["batch_size=16"]),
    ],
)
def test_imagenets_global_batch_is_the_papers_on_any_number_of_processes(
    processes: int | None, an: list[str], sn: list[str]
) -> None:
    arguments = ["--data", "imagenet", "--data-root", "/data/imagenet", "--dry-run"]
    arguments += [] if processes is None else ["--nproc-per-node", str(processes)]
    commands = run_script("run_table1", *arguments).stdout.splitlines()
    for row, wanted, usual in (("resnet50_an", an, 4), ("resnet50_sn", sn, 8)):
        words = next(c for c in commands if f"+experiment=table1/{row}" in c).split()
        shares = [word for word in words if word.startswith(("grad_acc", "batch_size"))]
        assert shares == wanted
        assert f"--nproc-per-node={processes or usual}" in words
        assert "data.root=/data/imagenet" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows", "resnet18_an"], ["--rows resnet18_an", "resnet50_an"]),
        (["--seeds", "0"], ["--seeds 0", "at least 1"]),
        (["--data", "imagenet"], ["--data-root"]),
        (["--data-root", "/data"], ["--data imagenet"]),
        (["--nproc-per-node", "7"], ["--nproc-per-node 7", "32 images"]),
        (["epochs"], ["'epochs' is not key=value"]),
    ],
)
def test_what_no_run_could_do_is_refused(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    done = run_script("run_table1", "--runs", str(tmp_path / "runs"), *arguments)
    assert done.returncode == 2
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "runs").exists()
