"""What Python does by itself around a command, and what of it can be left out.

torch and timm bring about a million objects that live as long as the process. The garbage collector
looks through them while they are imported, a quarter of that time; at the end they are taken apart
one by one, for one to two seconds in which nobody gets anything.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def without_collector() -> Iterator[None]:
    """The garbage collector rests, and goes on afterwards if it was on before."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def execute(command: Callable[[], int]) -> NoReturn:
    """The rest of this process: the command, and an end with its status.

    What has been imported is out of the garbage collector's sight, which makes its every round
    short, and is not taken apart at the end. Where the command fails, Python ends the process.
    """
    gc.freeze()
    try:
        status = command()
    except SystemExit as end:
        if not isinstance(end.code, int):
            gc.unfreeze()
            raise
        status = end.code
    except BaseException:
        gc.unfreeze()
        raise
    _leave(status)


def _leave(status: int) -> NoReturn:
    """As Python itself ends: after its threads, what is registered with :mod:`atexit`, and its
    output. Where that cannot be written (a pipe that nobody reads), Python says so as always."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        gc.unfreeze()
        sys.exit(status)
    os._exit(status)
