"""Every row of Table 1 trained, one run after another: what is planned."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from attnorm.config import config_directory
from attnorm.errors import UserError
from attnorm.reporting import per_class
from attnorm.reporting.queue import CONSOLE, PlannedRun, launcher, run_all
from attnorm.reporting.table1.paper import ROWS
from attnorm.reporting.table1.report import summary, write_report
from attnorm.reporting.table1.table import build_table
from attnorm.training.interrupts import EXIT_INTERRUPTED

ALL_ROWS = tuple(f"{row.arch}_{row.norm}" for row in ROWS)
DEFAULT_RUNS = {"digits": Path("runs/table1-small"), "imagenet": Path("runs/table1")}


@dataclass(frozen=True)
class TableRuns:
    """Which rows are trained, how often, and how.

    Attributes:
        data: digits or imagenet.
        data_root: ImageNet's folder.
        processes: of each run; None for the paper's number (digits: 1).
        overrides: ``key=value`` for every run.
    """

    data: str
    runs: Path
    data_root: Path | None = None
    rows: Sequence[str] = ALL_ROWS
    seeds: int = 1
    processes: int | None = None
    overrides: Sequence[str] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if row not in ALL_ROWS:
                raise UserError(f"--rows {row} is not known: choose from {', '.join(ALL_ROWS)}.")
        for option, value in (("--seeds", self.seeds), ("--nproc-per-node", self.processes)):
            if value is not None and value < 1:
                raise UserError(f"{option} {value}: it must be at least 1.")
        if self.data == "imagenet" and self.data_root is None:
            raise UserError("--data imagenet needs --data-root FOLDER, with train/ and val/.")
        if self.data == "digits" and self.data_root is not None:
            raise UserError("--data-root is for --data imagenet: the digits are built in.")
        for override in self.overrides:
            if "=" not in override:
                raise UserError(f"{override!r} is not key=value.")


def train_table(wanted: TableRuns) -> int:
    """Train what is not finished yet, and write the report.

    Returns:
        The exit status: 0 all finished, 1 some failed, 75 interrupted.
    """
    started = time.monotonic()
    status = run_all(plan_runs(wanted), wanted.runs)
    if status != EXIT_INTERRUPTED:
        table = build_table(wanted.runs, wanted.data)
        per_class.evaluate_missing(table.runs)
        write_report(table, wanted.runs / "report")
        CONSOLE.print("\n" + summary(table), markup=False)
        CONSOLE.print(f"report: {wanted.runs / 'report' / 'index.html'}", markup=False)
    CONSOLE.print(f"took {(time.monotonic() - started) / 60:.1f} min")
    return status


def show_commands(wanted: TableRuns) -> int:
    """Print the commands that would train, for copying; the exit status is 0."""
    commands = [shlex.join(run.command) for run in plan_runs(wanted)]
    CONSOLE.out(*commands, sep="\n", highlight=False)
    return 0


def plan_runs(wanted: TableRuns) -> list[PlannedRun]:
    """Every run, all rows of a seed before the next seed: the first table is whole early."""
    return [_plan_run(row, seed, wanted) for seed in range(wanted.seeds) for row in wanted.rows]


def _plan_run(row: str, seed: int, wanted: TableRuns) -> PlannedRun:
    arch, norm = row.split("_")
    name = f"{row}_seed{seed}"
    folder = wanted.runs / name
    if wanted.data == "digits":
        experiment, papers = "small", 1
        settings = [f"+experiment={experiment}", f"arch={arch}", f"norm={norm}"]
    else:
        # The paper's 4 GPUs × 128 images, and 8 × 32 for SN (Table 1).
        experiment, papers = f"table1/{row}", 8 if norm == "sn" else 4
        settings = [f"+experiment={experiment}", f"data.root={wanted.data_root}"]
    processes = wanted.processes or papers
    settings += _same_global_batch(experiment, papers, processes)
    settings += [f"seed={seed}", f"name={name}", f"hydra.run.dir={folder}"]
    command = (*launcher(processes), *settings, *wanted.overrides)
    return PlannedRun(name, folder, command)


def _same_global_batch(experiment: str, papers: int, processes: int) -> list[str]:
    """Overrides that keep the experiment's images per step on another number of processes.

    Fewer processes accumulate gradients, so that batch statistics stay those of the experiment.
    """
    path = config_directory() / "experiment" / f"{experiment}.yaml"
    batch_size = yaml.safe_load(path.read_text())["batch_size"]
    if papers % processes == 0:
        return [f"grad_accumulation={papers // processes}"] if processes < papers else []
    if batch_size * papers % processes == 0:
        return [f"batch_size={batch_size * papers // processes}"]
    raise UserError(
        f"--nproc-per-node {processes}: {batch_size * papers} images a step cannot be shared by"
        f" {processes} processes; use a power of 2."
    )
