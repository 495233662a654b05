"""A run belongs to one queue on any machine, and to another once nobody works on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from attnorm.reporting import claims
from attnorm.reporting.claims import claim
from tests.script import WITHOUT_TORCH

HELD = f"""{WITHOUT_TORCH}
import subprocess, sys, time
from pathlib import Path
from attnorm.reporting.claims import claim
path = Path(sys.argv[1])
with claim(path, path.parent) as mine:
    child = subprocess.Popen(["sleep", "60"], pass_fds=[mine.fileno()])
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_a_claim_is_one_queues_while_it_lasts(tmp_path: Path) -> None:
    path = tmp_path / "a.claim"
    with claim(path, tmp_path) as mine:
        assert mine is not None
        with claim(path, tmp_path) as other:
            assert other is None
        assert path.exists(), "a look does not take it away"
    assert not path.exists()
    with claim(path, tmp_path) as again:
        assert again is not None
    assert not list(tmp_path.iterdir())


def test_a_killed_queue_holds_its_claim_while_its_run_lives(tmp_path: Path) -> None:
    path = tmp_path / "a.claim"
    holder = subprocess.Popen(
        [sys.executable, "-c", HELD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    holder.kill()
    holder.wait()
    with claim(path, tmp_path) as mine:
        assert mine is None
    os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while True:
        with claim(path, tmp_path) as mine:
            if mine is not None:
                break
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_another_machines_claim_is_taken_over_when_all_has_been_still(tmp_path: Path) -> None:
    path, run = tmp_path / "a.claim", tmp_path / "run"
    run.mkdir()
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    log = run / "metrics.jsonl"
    log.touch()
    old = time.time() - claims.STILL_SECONDS - 60
    with claim(path, run) as mine:
        assert mine is None
    os.utime(path, (old, old))
    with claim(path, run) as mine:
        assert mine is None, "its run goes on"
    os.utime(log, (old, old))
    with claim(path, run) as mine:
        assert mine is not None
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run"]
