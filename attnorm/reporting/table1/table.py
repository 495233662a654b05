"""The paper's Table 1 beside ours: counts made here, errors from the runs that are there."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from attnorm.config import load_arch, load_norm
from attnorm.models.complexity import Complexity, complexity
from attnorm.reporting.comparison import Difference, difference, difference_to_constant
from attnorm.reporting.runs import Run, common_speed, median, read_runs
from attnorm.reporting.table1.paper import ROWS, PaperRow

# Sections of a run's config that make its recipe: runs that differ in them are not averaged.
_RECIPE = (
    *("task", "data", "augment", "optim", "schedule", "train", "ema"),
    *("batch_size", "grad_accumulation", "epochs"),
)
# SN's row has its own batch size (8 × 32), and is compared with BN all the same.
_BATCH = ("batch_size", "grad_accumulation")
TASK = "classification"  # the only one that Table 1 has rows of


@dataclass(frozen=True, eq=False)
class Result:
    """The runs of one row that share a recipe. Errors in percent, std that of a sample."""

    members: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted(run.result["seed"] for run in self.members))

    @property
    def epochs(self) -> int:
        return int(self.members[0].config["epochs"])

    @property
    def lr(self) -> float:
        return float(self.members[0].config["optim"]["lr"])

    def errors(self, key: str) -> list[float]:
        """``top1_error`` or ``top5_error`` of each run's best epoch; empty if one has none."""
        found = [run.best[key] for run in self.members if run.best.get(key) is not None]
        return found if len(found) == len(self.members) else []

    @property
    def top1_error(self) -> float:
        return statistics.fmean(self.errors("top1_error"))

    @property
    def top1_std(self) -> float | None:
        return _std(self.errors("top1_error"))

    @property
    def top5_error(self) -> float | None:
        """None with fewer than five classes."""
        errors = self.errors("top5_error")
        return statistics.fmean(errors) if errors else None

    @property
    def top5_std(self) -> float | None:
        return _std(self.errors("top5_error"))

    @property
    def other_tests(self) -> dict[str, list[float]]:
        """Top-1 errors of all runs on other test sets and by other labels, by name."""
        names = sorted(set.intersection(*(set(run.evaluations) for run in self.members)))
        found: dict[str, list[Any]] = {
            name: [run.evaluations[name].get("top1_error") for run in self.members]
            for name in names
        }
        return {name: errors for name, errors in found.items() if None not in errors}

    @property
    def images_per_second(self) -> float | None:
        """Median over the runs; None where they ran on different machines."""
        return common_speed(self.members)

    @property
    def process_hours(self) -> float | None:
        """Median over the runs."""
        return median(run.process_hours for run in self.members)

    @property
    def runs(self) -> str:
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        return f"{seeds}, {self.epochs} epochs, lr {self.lr:g}"

    def recipe(self, without: Sequence[str] = ()) -> str:
        """Equal for results that may be compared."""
        return _recipe(self.members[0], without)

    def as_dict(self) -> dict[str, Any]:
        keys = ("seeds", "epochs", "lr", "top1_error", "top1_std", "top5_error", "top5_std")
        more = ("images_per_second", "process_hours", "other_tests")
        return {key: getattr(self, key) for key in (*keys, *more)}


@dataclass(frozen=True)
class Row:
    """One line of the table: the paper's, our counts, and our results by recipe."""

    paper: PaperRow
    ours: Complexity
    results: tuple[Result, ...]
    unfinished: tuple[Run, ...] = ()
    # Error against BN on the same architecture under the same recipe, by result.
    to_bn: tuple[Difference | None, ...] = ()
    # Error against the paper's, by result; ImageNet only.
    to_paper: tuple[Difference | None, ...] = ()


@dataclass(frozen=True)
class Table:
    """The eleven rows for one data set, and the runs that belong to none of them."""

    data: str
    rows: tuple[Row, ...]
    failed: tuple[Run, ...]
    others: tuple[Run, ...]

    @property
    def results(self) -> list[Result]:
        return [result for row in self.rows for result in row.results]

    @property
    def runs(self) -> list[Run]:
        """Those behind the results."""
        return [run for result in self.results for run in result.members]

    @property
    def other_tests(self) -> list[str]:
        """Other test sets and labels that a result has errors of."""
        return sorted({name for result in self.results for name in result.other_tests})


def build_table(runs: Path | None = None, data: str = "imagenet") -> Table:
    """The eleven rows, with results from every finished run on ``data`` under ``runs``.

    A run belongs to a row if its ``arch`` and ``norm`` are exactly the row's, and classification
    its task.

    Raises:
        UserError: a run's files cannot be read.
    """
    found = [] if runs is None else read_runs(runs)
    rows, taken = [], set()
    for paper in ROWS:
        arch, norm = load_arch(paper.arch), load_norm(paper.norm)
        wanted = {"arch": asdict(arch), "norm": asdict(norm)}
        mine = [run for run in found if _is_of_row(run, data, wanted)]
        taken |= {run.folder for run in mine}
        finished = [run for run in mine if run.status == "finished"]
        unfinished = tuple(run for run in mine if run.status != "finished")
        counts = _complexity(paper.arch, paper.norm)
        rows.append(Row(paper, counts, _by_recipe(finished), unfinished))
    return Table(
        data,
        _with_differences(rows, data),
        tuple(run for run in found if run.status == "failed"),
        tuple(run for run in found if run.folder not in taken and run.status != "failed"),
    )


@cache
def _complexity(arch: str, norm: str) -> Complexity:
    return complexity(load_arch(arch), load_norm(norm))


def _is_of_row(run: Run, data: str, wanted: Mapping[str, Any]) -> bool:
    return (
        run.setting("task.name") == TASK
        and run.setting("data.name") == data
        and run.setting("loader.name") != "synthetic"
        and all(run.setting(key) == value for key, value in wanted.items())
        and (run.best.get("top1_error") is not None or _has_just_begun(run))
    )


def _has_just_begun(run: Run) -> bool:
    return run.status != "finished" and not run.best


def _recipe(run: Run, without: Sequence[str] = ()) -> str:
    config = run.config
    data = {k: v for k, v in config["data"].items() if k not in ("root", "workers")}
    parts = {**{key: config.get(key) for key in _RECIPE if key not in without}, "data": data}
    return json.dumps({**parts, "files": run.result.get("data")}, sort_keys=True)


def _by_recipe(runs: Sequence[Run]) -> tuple[Result, ...]:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[_recipe(run)].append(run)
    return tuple(Result(tuple(group)) for group in groups.values())


def _with_differences(rows: Sequence[Row], data: str) -> tuple[Row, ...]:
    baselines = {row.paper.arch: row.results for row in rows if row.paper.norm == "bn"}
    filled = []
    for row in rows:
        to_bn: list[Difference | None] = []
        to_paper: list[Difference | None] = []
        for result in row.results:
            errors = result.errors("top1_error")
            bn = None if row.paper.norm == "bn" else _baseline(result, baselines[row.paper.arch])
            to_bn.append(difference(errors, bn.errors("top1_error")) if bn else None)
            printed = float(row.paper.printed.paper_top1_error)
            to_paper.append(difference_to_constant(errors, printed) if data == "imagenet" else None)
        filled.append(replace(row, to_bn=tuple(to_bn), to_paper=tuple(to_paper)))
    return tuple(filled)


def _baseline(result: Result, candidates: Sequence[Result]) -> Result | None:
    """BN under the same recipe or, if there is just one, under the same but for the batch size."""
    same = [other for other in candidates if other.recipe() == result.recipe()]
    near = [other for other in candidates if other.recipe(_BATCH) == result.recipe(_BATCH)]
    return same[0] if same else near[0] if len(near) == 1 else None


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
