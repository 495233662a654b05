"""Who trains a run, where several queues share a folder: on one machine, or on several.

A claim is a file that only one can create. On the machine of the queue it is locked for as long as
the queue, or the run that it started, lives. Other machines see that its queue lives by its time,
which a thread renews; what has been still for long, file and run alike, is taken over.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

RENEW_SECONDS = 20.0
STILL_SECONDS = 15 * 60.0


@contextmanager
def claim(path: Path, run: Path) -> Iterator[IO[str] | None]:
    """The claim's open file, for a child process to inherit; None if it is somebody else's.

    Args:
        path: of the claim; its folder is there.
        run: folder of the run, whose files show that it is being trained.
    """
    file = _create(path)
    if file is None and _is_left(path, run) and _removed(path, run):
        file = _create(path)
    if file is None:
        yield None
        return
    done = threading.Event()
    renewing = threading.Thread(target=_renew, args=(path, done), daemon=True)
    renewing.start()
    try:
        yield file
    finally:
        done.set()
        renewing.join()
        path.unlink(missing_ok=True)
        file.close()


def _create(path: Path) -> IO[str] | None:
    try:
        file = path.open("x")
    except FileExistsError:
        return None
    fcntl.flock(file, fcntl.LOCK_EX)
    json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
    file.flush()
    return file


def _renew(path: Path, done: threading.Event) -> None:
    while not done.wait(RENEW_SECONDS):
        with suppress(FileNotFoundError):  # taken over: this machine was gone for long
            os.utime(path)


def _is_left(path: Path, run: Path) -> bool:
    """Whether nobody works on it any more."""
    try:
        with path.open() as file:
            text = file.read()
            owner = json.loads(text) if text.strip() else {}
            if owner.get("host") == socket.gethostname():
                return _is_unlocked(file)
    except (FileNotFoundError, json.JSONDecodeError):
        return False  # it was given back, or is being written
    return _seconds_still(path, run) > STILL_SECONDS


def _is_unlocked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


def _seconds_still(path: Path, run: Path) -> float:
    """Since anything of the claim or its run changed, by the clock of the file system."""
    probe = path.with_name(f".{uuid.uuid4().hex}.now")
    probe.touch()
    try:
        now = probe.stat().st_mtime
        times = []
        for changed in (path, run / "metrics.jsonl", run / "last.pt"):
            with suppress(FileNotFoundError):
                times.append(changed.stat().st_mtime)
        return now - max(times, default=now)
    finally:
        probe.unlink()


def _removed(path: Path, run: Path) -> bool:
    """Take away a claim that nobody works on; whether this process was the one to do it."""
    aside = path.with_name(f".{uuid.uuid4().hex}.left")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    if not _is_left(aside, run):
        # Another queue had taken it over between the look and the rename: give it back.
        with suppress(FileExistsError):
            os.link(aside, path)
        aside.unlink()
        return False
    aside.unlink()
    return True
