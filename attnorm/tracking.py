"""What a person sees of a run: progress bar, log files, TensorBoard, ``metrics.jsonl``.

Rank 0 alone writes; on other ranks a tracker is silent, and only their log files exist.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from copy import copy
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from attnorm.errors import UserError
from attnorm.services import Service, open_service

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

# TensorBoard tags by metric name: one page for training, one for evaluation, one for the machine.
TAGS = {
    "train": {
        "loss": "train/loss",
        "top1_error": "train/top1_error",
        "lr": "train/lr",
        "grad_norm": "train/grad_norm",
        "scaler_scale": "train/scaler_scale",
        "skipped_steps": "train/skipped_steps",
        "images_per_second": "speed/images_per_second",
        "data_wait": "speed/data_wait",
        "slowest_data_wait": "speed/slowest_data_wait",
        "forward": "speed/forward",
        "backward": "speed/backward",
        "communication": "speed/communication",
        "optimizer": "speed/optimizer",
        "peak_memory_mib": "speed/peak_memory_mib",
    },
    "eval": {
        "loss": "val/loss",
        "top1_error": "val/top1_error",
        "top5_error": "val/top5_error",
        "ema_top1_error": "val/ema_top1_error",
    },
}


# What TensorBoard's hparams tab compares runs by.
HPARAMS = (
    *("arch.name", "norm.name", "norm.num_components", "data.name", "data.image_size"),
    *("epochs", "batch_size", "grad_accumulation", "optim.lr", "optim.weight_decay"),
    *("schedule.warmup_epochs", "train.label_smoothing", "precision", "seed"),
)


def _lookup(config: Mapping[str, Any], key: str) -> str | float | None:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def setup_logging(run_dir: Path, rank: int, console: Console) -> None:
    """Log to ``log/rankN.log``, and on rank 0 to the console as well."""
    folder = run_dir / "log"
    folder.mkdir(exist_ok=True)
    to_file = logging.FileHandler(folder / f"rank{rank}.log")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [to_file]
    if rank == 0:
        handlers.append(_console_handler(console))
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    logging.captureWarnings(True)


def _console_handler(console: Console) -> logging.Handler:
    handler: logging.Handler = logging.StreamHandler(console.file)
    if console.is_terminal:  # goes above the progress bar instead of through it
        handler = RichHandler(
            console=console,
            show_path=False,
            show_level=False,
            show_time=False,
            highlighter=NullHighlighter(),
        )
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


class Tracker:
    """The record of one run, in its folder and on the terminal.

    ``start_step`` and ``start_epoch`` (epochs completed) are where a continued run goes on: what an
    interrupted part recorded beyond them is dropped, since those steps happen again.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        enabled: bool,
        tensorboard: bool = True,
        console: Console | None = None,
        start_step: int = 0,
        start_epoch: int = 0,
        service: str | None = None,
    ) -> None:
        self.enabled = enabled
        self._run_dir, self._service_name = run_dir, service
        self._service: Service | None = None
        self.console = console or Console()
        self.metrics_path = run_dir / "metrics.jsonl"
        self._writer: SummaryWriter | None = None
        self._progress: Progress | None = None
        self._status = "starting"
        if not enabled:
            return
        _drop_after(self.metrics_path, start_step, start_epoch)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # a second of imports

            self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start_step)

    def start(self, total_epochs: int) -> None:
        """Show the progress bar, where the console is a terminal."""
        if not (self.enabled and self.console.is_terminal):
            return
        fixed = Column(no_wrap=True, overflow="ignore")
        columns = (
            TextColumn("{task.description}", table_column=fixed),
            BarColumn(bar_width=6, table_column=copy(fixed)),
            TextColumn("{task.completed:.0f}/{task.total}", table_column=copy(fixed)),
            TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True)),
        )
        self._progress = Progress(*columns, console=self.console, transient=True)
        self._task = self._progress.add_task(f"0/{total_epochs}", total=1, status=self._status)
        self._progress.start()

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl`` and its numbers to TensorBoard."""
        if not self.enabled:
            return
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        with self.metrics_path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        tags = TAGS.get(kind, {})
        scalars = {tag: values[name] for name, tag in tags.items() if values.get(name) is not None}
        if self._writer is not None:
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, value, step)
        if self._service is not None and scalars:
            self._service.log(scalars, step)

    def describe(self, config: Mapping[str, Any]) -> None:
        """Say what the run is: TensorBoard's hparams tab, and the service that gets the curves."""
        if not self.enabled:
            return
        if self._service_name is not None:
            self._service = open_service(self._service_name, self._run_dir, config)
        if self._writer is not None:
            from torch.utils.tensorboard.summary import hparams

            values = {key: _lookup(config, key) for key in HPARAMS}
            # Beside the scalars of these tags; add_hparams would make a run of its own.
            metrics = dict.fromkeys(TAGS["eval"].values(), 0.0)
            events = self._writer.file_writer
            assert events is not None, "the writer is open"
            known = {key: value for key, value in values.items() if value is not None}
            experiment, started, _ = hparams(known, metrics)
            events.add_summary(experiment)
            events.add_summary(started)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """A distribution in TensorBoard; numbers that are not finite are the trainer's business."""
        if self._writer is not None and bool(values.isfinite().all()):
            self._writer.add_histogram(tag, values, step)

    def text(self, tag: str, text: str) -> None:
        """A page of text in TensorBoard."""
        if self._writer is not None:
            self._writer.add_text(tag, f"```yaml\n{text}\n```")

    def train(self, step: int, values: Mapping[str, Any]) -> None:
        """A training interval: recorded, and one line on a plain console."""
        self.record("train", step, values)
        self._status = train_status(values)
        if self.enabled and self._progress is None:
            logger.info("%s", _train_line(values))

    def progress(self, epoch: int, epochs: int, done: int, total: int) -> None:
        """Move the bar; costs nothing where there is none."""
        if self._progress is not None:
            self._progress.update(
                self._task,
                description=f"{epoch}/{epochs}",
                completed=done,
                total=total,
                status=self._status,
            )

    def rewind(self, step: int, epoch: int) -> None:
        """Drop what was recorded after ``step``: training goes on from there."""
        if self.enabled:
            _drop_after(self.metrics_path, step, epoch)

    def close(self) -> None:
        """Flush TensorBoard and take the bar away."""
        if self._progress is not None:
            self._progress.stop()
        if self._writer is not None:
            self._writer.close()
        if self._service is not None:
            self._service.close()


def train_status(values: Mapping[str, Any]) -> str:
    """The numbers of a training interval, short enough for a bar on 80 columns."""
    return (
        f"loss {values['loss']:.3f} top-1 {values['top1_error']:.1f} %"
        f" lr {values['lr']:.2g} {values['images_per_second']:,.0f} img/s"
        f" eta {timedelta(seconds=round(values['eta_seconds']))}"
    )


def _train_line(values: Mapping[str, Any]) -> str:
    return (
        f"epoch {values['epoch']}/{values['epochs']} step {values['step_in_epoch']}"
        f"/{values['steps_per_epoch']}  loss {values['loss']:.3f}"
        f"  top-1 error {values['top1_error']:.1f} %  lr {values['lr']:.4g}"
        f"  {values['images_per_second']:,.0f} img/s"
        f"  eta {timedelta(seconds=round(values['eta_seconds']))}"
    )


def _drop_after(path: Path, step: int, epoch: int) -> None:
    """Keep events, and of the rest what a run that goes on from here will not record again.

    A line that a kill cut short goes too.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        position, start = (
            (entry["epoch"], epoch) if entry["kind"] == "eval" else (entry["step"], step)
        )
        if entry["kind"] == "event" or position <= start:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        write_text(path, json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
