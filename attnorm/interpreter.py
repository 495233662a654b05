"""What Python does by itself around a command, and what of it can be left out.

torch, timm and Hydra bring four hundred thousand objects that live as long as the process. The
garbage collector looks through them while they are imported, a quarter of that time; at the end
they are taken apart one by one, for one to two seconds in which nobody gets anything.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    short, and is not taken apart at the end. Where the command fails, or where somebody else has
    called it (a profiler, a debugger) and has something to do afterwards, Python ends the process.
    """
    gc.freeze()
    try:
        sys.exit(command())
    except SystemExit as end:
        if isinstance(end.code, int) and _is_called_by_python_alone():
            _leave(end.code)
        raise
    finally:
        gc.unfreeze()


def _is_called_by_python_alone() -> bool:
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_stack(None))
    ours = __name__.partition(".")[0]
    return all(name.partition(".")[0] in ("__main__", "runpy", ours) for name in modules)


def _leave(status: int) -> None:
    """As Python itself ends: after its threads, what is registered with :mod:`atexit`, and its
    output. Returns where that cannot be written (a pipe that nobody reads): Python says so."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(status)
