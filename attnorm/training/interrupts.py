"""Signals that ask a run to stop, noticed between two steps and agreed on by all processes."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Self

# sysexits.h: "temporary failure; try again". A job script requeues on it.
EXIT_INTERRUPTED = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class RunInterrupted(Exception):
    """A signal asked the run to stop; its checkpoint is on the disk."""


class Interrupts:
    """While entered, SIGTERM, SIGINT and SIGUSR1 only set ``received``.

    A second SIGINT ends the process at once, since a person who presses Ctrl-C twice means it; the
    last checkpoint stays as it was. (Within a second it is the same keystroke, which torchrun
    passes on.)
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._since = 0.0
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _notice(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = signal.Signals(number).name, now
        elif number == signal.SIGINT and now - self._since > 1.0:
            os._exit(128 + number)
