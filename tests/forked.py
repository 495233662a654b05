"""Training processes that start at once: forked from one that has imported torch already.

They are processes as any other for signals, kills, exit statuses and the ranks of a group. Python's
own start, ``train.py`` and torchrun are not in them: tests of those start ``train.py`` itself.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

from attnorm.__main__ import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["attnorm.commands.train", "attnorm.commands.evaluate", __name__])


class Forked:
    """``attnorm ARGUMENTS`` in a folder, in a session of its own, as :class:`subprocess.Popen`.

    What it prints is appended to the file ``output``; errors to ``errors``, if it is given.
    """

    def __init__(
        self,
        folder: Path,
        output: Path,
        arguments: list[str],
        environment: Mapping[str, str] | None = None,
        errors: Path | None = None,
    ) -> None:
        given = (folder, output, errors or output, arguments, dict(environment or {}))
        self._process = CONTEXT.Process(target=_enter, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("attnorm", timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def ranks(count: int, **more: str) -> list[dict[str, str]]:
    """The environments that torchrun would give to the processes of one group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    group["LOCAL_WORLD_SIZE"] = str(count)
    return [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank), **more} for rank in range(count)]


def _enter(
    folder: Path, output: Path, errors: Path, arguments: list[str], environment: dict[str, str]
) -> None:
    os.setsid()
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # as python -m does
    for path, descriptor in ((output, 1), (errors, 2)):
        with path.open("a") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    sys.argv = [f"{arguments[0]}.py", *arguments[1:]]
    sys.exit(main(arguments))
