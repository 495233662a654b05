"""Ctrl-C where no training is: no traceback, nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attnorm.errors import exit_on_user_error
from tests.conftest import ROOT


@pytest.mark.parametrize("door", ["train.py", "eval.py", "scripts/demo.py"])
def test_while_libraries_are_imported_it_just_ends(door: str, tmp_path: Path) -> None:
    # A process inherits that a signal is ignored, as by a shell's background jobs.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        started = subprocess.Popen(
            [sys.executable, str(ROOT / door), "--help"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(0.5)
    started.send_signal(signal.SIGINT)
    assert started.communicate(timeout=30) == ("", "")
    assert started.returncode == -signal.SIGINT


def test_later_it_is_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as stopped, exit_on_user_error():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_who_ignores_it_goes_on() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with exit_on_user_error():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
