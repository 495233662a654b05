"""What Python does around a command, in processes of its own."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from attnorm.interpreter import without_collector
from tests.conftest import ROOT
from tests.script import WITHOUT_TORCH

EXECUTE = "\nfrom attnorm.interpreter import execute\nexecute(command)\n"


def start(body: str, before: str = WITHOUT_TORCH) -> subprocess.Popen[str]:
    """A process whose command is ``command`` of the body."""
    code = before + textwrap.dedent(body) + EXECUTE
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(body: str, before: str = WITHOUT_TORCH) -> tuple[int, str, str]:
    process = start(body, before)
    out, err = process.communicate()
    return process.returncode, out, err


def test_threads_exit_functions_and_output_come_first_and_objects_are_left() -> None:
    status, out, err = finish("""
        import atexit, concurrent.futures, sys, threading, time

        class Told:
            def __del__(self):
                print("taken apart")

        def late(word):
            time.sleep(0.3)
            sys.stdout.write(word)

        told = Told()
        pool = concurrent.futures.ThreadPoolExecutor()

        def command():
            pool.submit(late, "pool ")
            threading.Thread(target=late, args=("thread ",)).start()
            atexit.register(sys.stdout.write, "exit function")
            return 3
    """)
    assert (status, err) == (3, "")
    assert sorted(out.split()) == ["exit", "function", "pool", "thread"]
    assert out.endswith("exit function")


@pytest.mark.parametrize(
    ("end", "status", "message"),
    [
        ("sys.exit(75)", 75, ""),
        ("sys.exit('a reason')", 1, "a reason\n"),
        ("raise ValueError('a bug')", 1, "ValueError: a bug\n"),
        ("raise KeyboardInterrupt", -2, "KeyboardInterrupt\n"),
    ],
)
def test_other_ends_are_pythons_own(end: str, status: int, message: str) -> None:
    found, _, err = finish(f"""
        import sys

        def command():
            {end}
    """)
    assert found == status
    assert err.endswith(message)


def test_libraries_do_not_complain_at_such_an_end() -> None:
    status, _, err = finish(
        """
        import timm

        def command():
            raise ValueError("a bug")
        """,
        before="",
    )
    assert status == 1
    assert err.endswith("ValueError: a bug\n")
    assert "nanobind" not in err


def test_output_that_nobody_reads_is_said() -> None:
    process = start("""
        def command():
            print("lost")
            return 0
    """)
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    assert "BrokenPipeError" in process.stderr.read()
    assert process.wait() == 120, "what Python ends with then"


def test_a_profiler_around_a_command_says_what_it_has_seen(tmp_path: Path) -> None:
    command = "def command():\n    return 0\n"
    (tmp_path / "short.py").write_text(WITHOUT_TORCH + command + EXECUTE)
    done = subprocess.run(
        [sys.executable, "-m", "cProfile", "-m", "short"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "function calls" in done.stdout
    assert done.stderr == ""


def test_imports_of_a_command_are_out_of_the_collectors_sight() -> None:
    status, out, err = finish(
        """
        import gc, timm

        def command():
            print(len(gc.get_objects()), gc.get_freeze_count(), gc.isenabled())
            return 0
        """,
        before="",
    )
    assert "nanobind" not in err
    seen, frozen, collects = out.split()
    assert status == 0
    assert int(seen) < 1000 < 100_000 < int(frozen)
    assert collects == "True"


def test_the_collector_goes_on_only_if_it_was_on() -> None:
    assert gc.isenabled()
    with without_collector():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), without_collector():
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with without_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
