"""A grid of runs from a command line: values with commas are its axes."""

from __future__ import annotations

import itertools
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnorm.config import compose
from attnorm.errors import UserError
from attnorm.reporting.grid.report import summary, write_report
from attnorm.reporting.grid.table import build_table
from attnorm.reporting.queue import CONSOLE, PlannedRun, launcher, run_shared
from attnorm.training.interrupts import EXIT_INTERRUPTED

# A comma that no bracket or quote surrounds.
_COMMA = re.compile(r",(?![^\[{(]*[\]})])(?=(?:[^'\"]*['\"][^'\"]*['\"])*[^'\"]*$)")
# Whose values name themselves; others are written with their key.
_NAMED = ("arch", "norm", "recipe", "optim", "schedule", "augment", "data", "experiment")


@dataclass(frozen=True)
class Grid:
    """What is trained.

    Attributes:
        axes: key and values, in the order given, seeds last: the first table is whole early.
        common: ``key=value`` of every run.
        runs: the folder that they go to.
        processes: of each run.
    """

    axes: tuple[tuple[str, tuple[str, ...]], ...]
    common: tuple[str, ...]
    runs: Path
    processes: int = 1

    @classmethod
    def read(cls, overrides: Sequence[str], runs: Path, processes: int = 1) -> Grid:
        """From arguments such as ``norm=bn,an recipe=paper,rsb_a3 seed=0,1,2 epochs=3``.

        Raises:
            UserError: one is not key=value, is there twice, or no run can be made of them.
        """
        if processes < 1:
            raise UserError(f"--nproc-per-node {processes}: it must be at least 1.")
        axes: list[tuple[str, tuple[str, ...]]] = []
        common: list[str] = []
        seen: set[str] = set()
        for override in overrides:
            key, separator, text = override.partition("=")
            if not separator:
                raise UserError(f"{override!r} is not key=value.")
            if key in seen:
                raise UserError(f"{key}= is there twice: give all its values at once, {key}=A,B.")
            if key in ("name", "hydra.run.dir"):
                raise UserError(f"{key}= is the grid's own: each run has a folder of its own.")
            seen.add(key)
            values = tuple(_COMMA.split(text))
            if len(values) > 1 or key in ("norm", "recipe", "arch", "seed"):
                axes.append((key, values))
            else:
                common.append(override)
        axes.sort(key=lambda axis: axis[0] == "seed")
        grid = cls(tuple(axes), tuple(common), runs, processes)
        grid.check()
        return grid

    def cells(self) -> list[tuple[str, ...]]:
        """The values of the axes of every run, the last axis (seeds) changing slowest."""
        slowest_first = [values for _, values in reversed(self.axes)]
        return [tuple(reversed(cell)) for cell in itertools.product(*slowest_first)]

    def check(self) -> None:
        """Compose every run before the first one starts.

        Raises:
            UserError: one of them cannot be had.
        """
        for cell in self.cells():
            compose([*self._settings(cell), *self.common])

    def plan(self) -> list[PlannedRun]:
        """Every run, with its command."""
        planned = []
        for cell in self.cells():
            name = "_".join(
                value if key.lstrip("+") in _NAMED else f"{key.rpartition('.')[2]}{value}"
                for (key, _), value in zip(self.axes, cell, strict=True)
            )
            name = re.sub(r"[^\w.+-]+", "-", name).strip("-") or "run"
            folder = self.runs / name
            settings = [*self._settings(cell), *self.common, f"name={name}"]
            command = (*launcher(self.processes), *settings, f"hydra.run.dir={folder}")
            planned.append(PlannedRun(name, folder, command))
        return planned

    def _settings(self, cell: Sequence[str]) -> list[str]:
        return [f"{key}={value}" for (key, _), value in zip(self.axes, cell, strict=True)]


def train_grid(grid: Grid) -> int:
    """Train what is not finished yet, and write the report.

    Returns:
        The exit status: 0 all finished, 1 some failed, 75 interrupted.
    """
    started = time.monotonic()
    status = run_shared(grid.plan(), grid.runs)
    if status != EXIT_INTERRUPTED:
        table = build_table(grid.runs)
        write_report(table, grid.runs / "report")
        CONSOLE.print("\n" + summary(table), markup=False)
        CONSOLE.print(f"report: {grid.runs / 'report' / 'index.html'}", markup=False)
    CONSOLE.print(f"took {(time.monotonic() - started) / 60:.1f} min")
    return status


def show_commands(grid: Grid) -> int:
    """Print the commands that would train, for copying; the exit status is 0."""
    CONSOLE.out(*(shlex.join(run.command) for run in grid.plan()), sep="\n", highlight=False)
    return 0
