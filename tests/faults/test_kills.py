"""Processes that are killed or told to stop, and what the run is in the end."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from attnorm.training import checkpoint
from tests.conftest import ROOT
from tests.faults.conftest import SETTINGS, Launch, assert_same_end, lines, wait_for

Start = Callable[..., Launch]
Report = Callable[..., None]
# No averaged weights, and two micro-batches a step.
PLAIN = ["ema.decay=null", "grad_accumulation=2", "batch_size=3"]
# All that is drawn at random: for images, for batches, for the size of an epoch, in the network.
EVERYTHING = [
    *("epochs=10", "augment.policy=rand-m7-n2-mstd0.5-inc1", "augment.erasing=0.3"),
    *("augment.repeats=2", "augment.mixup=0.2", "augment.cutmix=1.0", "ema.every=3"),
    *("train.loss=binary_cross_entropy", "data.train_size=24", "data.final_train_size=32"),
    *("data.train_size_ramp=[0.4,0.6]", "+arch.timm_options.drop_path_rate=0.2", "optim=lamb"),
]
REPEATED = "nothing; steps since the checkpoint are repeated"


@pytest.fixture(scope="module")
def whole_pair(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    settings = [*SETTINGS, f"data.root={images}", "name=pair", "batch_size=3"]
    done = Launch(folder, settings, processes=2)
    assert done.wait() == 0, done.text
    return folder / "runs" / "pair"


@pytest.mark.parametrize(
    ("kills", "loader", "options"),
    [
        pytest.param(2, "torch", []),
        pytest.param(20, "torch", ["epochs=24"], marks=pytest.mark.slow),
        pytest.param(5, "dali", [*PLAIN, "epochs=10"], marks=pytest.mark.slow),
        pytest.param(3, "torch", EVERYTHING, marks=pytest.mark.slow),
        pytest.param(3, "dali", EVERYTHING, marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(1200)
def test_a_run_killed_at_random_moments_ends_bitwise_the_same(
    kills: int, loader: str, options: list[str], launch: Start, fault: Report, tmp_path: Path
) -> None:
    """SIGKILL at a random time after a random step: in a step, an evaluation or a write."""
    reference = launch("name=whole", f"loader={loader}", *options)
    assert reference.wait() == 0, reference.text
    moments = random.Random(0)
    run = tmp_path / "runs" / "killed"
    killed = 0
    for _ in range(kills):
        started = launch("name=killed", f"loader={loader}", *options)
        steps = moments.randint(1, 3)
        before = len(lines(run, "train"))
        wait_for(
            lambda target=before + steps, it=started: (
                len(lines(run, "train")) >= target or it.process.poll() is not None
            )
        )
        time.sleep(moments.random() * 0.25)
        if started.process.poll() is None:
            started.kill()
            killed += 1
    final = launch("name=killed", f"loader={loader}", *options)
    assert final.wait() == 0, final.text
    assert killed == kills, "the run ended before it could be killed so often"
    assert_same_end(tmp_path / "runs" / "whole", run)
    assert not list(run.rglob("*.tmp"))
    fault(f"SIGKILL at a random moment, started again ({loader} loader)", killed)


def test_sigterm_stops_two_processes_at_the_same_step_and_they_continue(
    whole_pair: Path, launch: Start, fault: Report, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "pair"
    started = launch("name=pair", "batch_size=3", processes=2)
    wait_for(lambda: len(lines(run, "train")) >= 2)
    os.kill(started.process.pid, signal.SIGTERM)
    assert started.wait() != 0
    assert lines(run, "event")[-1]["event"] == "interrupted"
    assert (run / "last.pt").exists()
    again = launch("name=pair", "batch_size=3", processes=2)
    assert again.wait() == 0, again.text
    assert_same_end(whole_pair, run)
    fault("SIGTERM to torchrun with two processes, started again", 1)


def test_torchrun_restarts_after_one_of_two_processes_was_killed(
    whole_pair: Path, launch: Start, fault: Report, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "pair"
    started = launch("name=pair", "batch_size=3", processes=2)
    wait_for(lambda: len(lines(run, "train")) >= 4)
    os.kill(started.children()[1], signal.SIGKILL)
    assert started.wait() == 0, started.text
    events = [line["event"] for line in lines(run, "event")]
    assert events == ["started", "continued"]
    steps = [line["step"] for line in lines(run, "train")]
    assert steps == [line["step"] for line in lines(whole_pair, "train")]
    assert [line["images"] for line in lines(run, "eval")] == [12] * 6
    fault("SIGKILL of one of two processes, torchrun --max-restarts", 1)


def test_ctrl_c_writes_a_checkpoint_and_exits_with_the_status_for_requeueing(
    launch: Start, fault: Report, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "stopped"
    started = launch("name=stopped", "epochs=500")
    wait_for(lambda: len(lines(run, "train")) >= 2)
    os.kill(started.process.pid, signal.SIGINT)
    assert started.wait() == 75, started.text
    assert "the same command continues the run" in started.text
    stopped_at = lines(run, "event")[-1]["step"]
    assert checkpoint.load_checkpoint(run / "last.pt")["step"] == stopped_at
    fault("SIGINT: checkpoint at that step, exit status 75", 1)


def test_a_second_ctrl_c_exits_at_once_and_leaves_the_last_checkpoint(
    launch: Start, fault: Report, images: Path, tmp_path: Path
) -> None:
    """The first one waits for the end of a step; here the step waits for a pipe nobody fills."""
    data = tmp_path / "data"
    shutil.copytree(images, data)
    run = tmp_path / "runs" / "stubborn"
    started = launch("name=stubborn", f"data.root={data}", "epochs=500")
    wait_for(lambda: len(lines(run, "train")) >= 4)
    good = checkpoint.load_checkpoint(run / "last.pt")["step"]
    for photo in (data / "train").rglob("*.jpg"):
        photo.unlink()
        os.mkfifo(photo)
    time.sleep(1.0)
    os.kill(started.process.pid, signal.SIGINT)
    time.sleep(1.5)
    assert started.process.poll() is None, "it waits for its step to end"
    os.kill(started.process.pid, signal.SIGINT)
    assert started.wait(10) == 130
    assert checkpoint.load_checkpoint(run / "last.pt")["step"] >= good
    fault("second SIGINT while a step hangs", 1, REPEATED)


def test_a_stalled_process_is_reported_by_its_rank(
    launch: Start, fault: Report, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "stalled"
    started = launch("name=stalled", "batch_size=3", "timeout_minutes=0.1", processes=2)
    wait_for(lambda: len(lines(run, "train")) >= 2)
    stalled = started.children()[1]
    os.kill(stalled, signal.SIGSTOP)
    try:
        wait_for(lambda: "rank 1 no longer answered" in started.text, 60)
    finally:
        with contextlib.suppress(ProcessLookupError):  # torchrun may have ended it
            os.kill(stalled, signal.SIGKILL)
    assert "rank 0 no longer answered" not in started.text
    fault("SIGSTOP of one of two processes: named within the time-out", 1)


def test_a_job_script_requeues_a_job_that_was_told_to_stop(
    images: Path, fault: Report, tmp_path: Path
) -> None:
    """With stand-ins for SLURM's three commands; the training behind them is real."""
    commands = tmp_path / "bin"
    commands.mkdir()
    scripts = {
        "srun": 'shift; "$@" & echo $! > srun.pid; wait $!',
        "scancel": 'kill -TERM "$(cat srun.pid)"',
        "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> scontrol.log; fi',
    }
    for name, body in scripts.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    shutil.copy(ROOT / "train.py", tmp_path)
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_GPUS_ON_NODE": "1",
    }
    arguments = [*SETTINGS, f"data.root={images}", "name=job", "epochs=300"]
    with (tmp_path / "output.txt").open("w") as output:
        job = subprocess.Popen(
            ["bash", str(ROOT / "scripts" / "slurm.sbatch"), *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    run = tmp_path / "runs" / "job"
    wait_for(lambda: len(lines(run, "train")) >= 2)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 0, (tmp_path / "output.txt").read_text()
    assert (tmp_path / "scontrol.log").read_text() == "requeue 17\n"
    assert lines(run, "event")[-1]["event"] == "interrupted"
    fault("SIGUSR1 to the SLURM script (its commands by stand-ins)", 1)
