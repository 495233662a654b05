"""The record of one run: what the trainer says once goes to the terminal and to every sink."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from attnorm.tracking.console import ProgressBar
from attnorm.tracking.jsonl import JsonLines
from attnorm.tracking.sink import Sink
from attnorm.tracking.tensorboard import TensorBoard
from attnorm.tracking.wandb_mlflow import open_service

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


def open_tracker(
    run_dir: Path,
    *,
    enabled: bool,
    tags: Mapping[str, Mapping[str, str]] = {},
    console: Console | None = None,
    tensorboard: bool = True,
    service: str | None = None,
    name: str | None = None,
    config: Mapping[str, Any] = {},
    hparams: Sequence[str] = (),
    start_step: int = 0,
    start_epoch: int = 0,
) -> Tracker:
    """The record of the run in ``run_dir``: ``metrics.jsonl`` and what else is asked for.

    Args:
        enabled: False on all ranks but 0: nothing is written or shown.
        tags: By kind of record, which values become scalars and under which tag.
        service: wandb or mlflow, if the record goes there as well.
        name: The run's in the service; without it the name of its folder.
        config: The run's, for TensorBoard's hparams tab and for the service.
        hparams: Dotted keys of ``config`` that the tab compares runs by.
        start_step: Where a continued run goes on: what an interrupted part recorded beyond is
            dropped, since those steps happen again.
        start_epoch: Epochs completed there.

    Raises:
        UserError: the service's library is not installed.
    """
    console = console or Console()
    if not enabled:
        return Tracker([], console, enabled=False)
    sinks: list[Sink] = [JsonLines(run_dir / "metrics.jsonl", start_step, start_epoch)]
    if tensorboard:
        sinks.append(TensorBoard(run_dir, tags, config, hparams, start_step))
    if service is not None:
        sinks.append(open_service(service, run_dir, name or run_dir.name, tags, config))
    return Tracker(sinks, console)


class Tracker:
    """Hands a run's record to its sinks, and shows a bar or lines on the console.

    Rank 0's alone is enabled; on other ranks it has no sinks and is silent.
    """

    def __init__(self, sinks: Sequence[Sink], console: Console, *, enabled: bool = True) -> None:
        self.console, self.enabled = console, enabled
        self._sinks = list(sinks)
        self._bar: ProgressBar | None = None

    def start(self, total_epochs: int) -> None:
        """Show the progress bar, where the console is a terminal."""
        if self.enabled and self.console.is_terminal:
            self._bar = ProgressBar(self.console, total_epochs)

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """A line of values by name; the kinds are "train", "eval" (with "epoch") and "event"."""
        for sink in self._sinks:
            sink.record(kind, step, values)

    def train(self, step: int, values: Mapping[str, Any], *, status: str, line: str) -> None:
        """A training interval: ``status`` for the bar or, without one, ``line`` to the log."""
        self.record("train", step, values)
        if self._bar is not None:
            self._bar.status = status
        elif self.enabled:
            logger.info("%s", line)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """A distribution; numbers that are not finite are the trainer's business."""
        if self._sinks and bool(values.isfinite().all()):
            for sink in self._sinks:
                sink.histogram(tag, values, step)

    def picture(self, tag: str, pixels: Tensor, step: int) -> None:
        """A picture: uint8 (H, W, 3), on the CPU."""
        for sink in self._sinks:
            sink.picture(tag, pixels, step)

    def text(self, tag: str, text: str) -> None:
        """A page of YAML."""
        for sink in self._sinks:
            sink.text(tag, text)

    def progress(self, epoch: int, epochs: int, done: int, total: int) -> None:
        """Move the bar; costs nothing where there is none."""
        if self._bar is not None:
            self._bar.update(epoch, epochs, done, total)

    def rewind(self, step: int, epoch: int) -> None:
        """Drop what was recorded after ``step``: training goes on from there."""
        for sink in self._sinks:
            sink.rewind(step, epoch)

    def close(self) -> None:
        """Take the bar away, and write or send what is left."""
        if self._bar is not None:
            self._bar.close()
        for sink in self._sinks:
            sink.close()
