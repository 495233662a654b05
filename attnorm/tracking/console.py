"""The terminal and the log files: a progress bar with log lines above it, or lines alone."""

from __future__ import annotations

import logging
from copy import copy
from pathlib import Path

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column


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


class ProgressBar:
    """The epoch under way on a terminal: ``1/120``, steps done of all, and a status text."""

    def __init__(self, console: Console, total_epochs: int) -> None:
        fixed = Column(no_wrap=True, overflow="ignore")
        self._progress = Progress(
            TextColumn("{task.description}", table_column=fixed),
            BarColumn(bar_width=6, table_column=copy(fixed)),
            TextColumn("{task.completed:.0f}/{task.total}", table_column=copy(fixed)),
            TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
        )
        self.status = "starting"
        self._task = self._progress.add_task(f"0/{total_epochs}", total=1, status=self.status)
        self._progress.start()

    def update(self, epoch: int, epochs: int, done: int, total: int) -> None:
        """Step ``done`` of ``total`` in epoch ``epoch`` (from 1) of ``epochs``."""
        self._progress.update(
            self._task,
            description=f"{epoch}/{epochs}",
            completed=done,
            total=total,
            status=self.status,
        )

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()
