"""One of the paper's Tables 2, 3 and 4 beside ours: AP from the runs that are there."""

from __future__ import annotations

import copy
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from attnorm.config import Config, compose, to_container
from attnorm.detection.model import build_detector
from attnorm.models.complexity import count_parameters
from attnorm.reporting.comparison import Difference, difference
from attnorm.reporting.detection_tables.paper import METRICS, PaperRow, rows_of
from attnorm.reporting.runs import Run, common_speed, median, read_runs

TASK = "detection"
COCO_CLASSES = 80
# Sections of a run's config that make its recipe: runs that differ in them are not averaged.
_RECIPE = (
    *("task", "data", "detector", "optim", "schedule", "train"),
    *("batch_size", "grad_accumulation", "epochs"),
)
# Keys that say where a recipe runs, not what it is.
_PLACE = ("data.root", "data.workers")
# What makes a row, beside its backbone and its detector: the normalizers of its heads.
_HEADS = ("detector.box_head_norm", "detector.mask_head_norm", "detector.fpn_norm")
# A normalizer brings these with it; to compare it with BN they may differ.
_OF_NORM = (
    *_HEADS,
    *("detector.head_components", "detector.head_attention", "detector.freeze"),
    "optim.norm_weight_decay",
)


@dataclass(frozen=True, eq=False)
class Result:
    """The runs of one row that share a recipe. AP in percent, std that of a sample."""

    members: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted(run.result["seed"] for run in self.members))

    @property
    def epochs(self) -> int:
        return int(self.members[0].config["epochs"])

    @property
    def box_head(self) -> str:
        return str(self.members[0].setting("detector.box_head"))

    def values(self, metric: str) -> list[float]:
        """Of each run's best epoch; empty if one has none."""
        found = [run.best[metric] for run in self.members if run.best.get(metric) is not None]
        return found if len(found) == len(self.members) else []

    def mean(self, metric: str) -> float | None:
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def std(self, metric: str) -> float | None:
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

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
        lr = float(self.members[0].config["optim"]["lr"])
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        return f"{seeds}, {epochs}, lr {lr:g}, {self.box_head}"

    def recipe(self, without: Sequence[str] = ()) -> str:
        """Equal for results that may be compared."""
        return _recipe(self.members[0], without)


@dataclass(frozen=True)
class Comparison:
    """A row's AP minus that of frozen BN, by metric.

    Attributes:
        same_head: whether BN was trained with the same kind of box head.
    """

    differences: Mapping[str, Difference]
    same_head: bool


@dataclass(frozen=True)
class Row:
    """One line: the paper's, our parameters, and our results by recipe."""

    paper: PaperRow
    arch: str
    norm: str
    detector: str
    head_norm: str
    parameters: int
    results: tuple[Result, ...] = ()
    unfinished: tuple[Run, ...] = ()
    # Against BN of the same backbone and detector, by result.
    to_bn: tuple[Comparison | None, ...] = ()

    @property
    def is_baseline(self) -> bool:
        return self.norm == "bn"


@dataclass(frozen=True)
class Table:
    """The rows of one table for one data set, and the runs that belong to none of them."""

    number: int
    data: str
    rows: tuple[Row, ...]
    failed: tuple[Run, ...]
    others: tuple[Run, ...]

    @property
    def on_coco(self) -> bool:
        return self.data == "coco"


def build_table(number: int, runs: Path | None = None, data: str = "coco") -> Table:
    """The rows of Table ``number``, with results of the finished runs on ``data`` under ``runs``.

    A run belongs to a row if its backbone, its normalizer, its kind of detector and the normalizers
    of its heads are exactly those of the row's experiment.

    Raises:
        UserError: a run's files cannot be read.
    """
    found = [] if runs is None else read_runs(runs)
    rows, taken = [], set()
    for paper in rows_of(number):
        config = compose([f"+experiment={paper.experiment}"])
        wanted = _identity(to_container(config))
        mine = [run for run in found if _is_of_row(run, data, wanted)]
        taken |= {run.folder for run in mine}
        finished = [run for run in mine if run.status == "finished"]
        unfinished = tuple(run for run in mine if run.status != "finished")
        assert config.detector is not None, "an experiment of these tables has one"
        rows.append(
            Row(
                paper,
                config.arch.name,
                config.norm.name,
                config.detector.name,
                config.detector.box_head_norm,
                _parameters(paper.experiment),
                _by_recipe(finished),
                unfinished,
            )
        )
    return Table(
        number,
        data,
        _with_differences(rows),
        tuple(run for run in found if run.status == "failed"),
        tuple(run for run in found if run.folder not in taken and run.status != "failed"),
    )


@cache
def _parameters(experiment: str) -> int:
    config: Config = compose([f"+experiment={experiment}"])
    assert config.detector is not None, "an experiment of these tables has one"
    with torch.device("meta"):
        model = build_detector(config.arch, config.norm, config.detector, COCO_CLASSES)
    return count_parameters(model)


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run has to have in common with its row."""
    detector = config.get("detector") or {}
    keys = ("name", *(key.partition(".")[2] for key in _HEADS))
    return {
        "arch": config.get("arch"),
        "norm": config.get("norm"),
        **{key: detector.get(key) for key in keys},
    }


def _is_of_row(run: Run, data: str, wanted: Mapping[str, Any]) -> bool:
    return (
        run.setting("task.name") == TASK
        and run.setting("data.name") == data
        and _identity(run.config) == wanted
        and (run.best.get("box_AP") is not None or _has_just_begun(run))
    )


def _has_just_begun(run: Run) -> bool:
    return run.status != "finished" and not run.best


def _recipe(run: Run, without: Sequence[str] = ()) -> str:
    parts = copy.deepcopy({key: run.config.get(key) for key in _RECIPE})
    parts["files"] = run.result.get("data")
    for key in (*_PLACE, *without):
        section, _, name = key.partition(".")
        (parts.get(section) or {}).pop(name, None)
    return json.dumps(parts, sort_keys=True)


def _by_recipe(runs: Sequence[Run]) -> tuple[Result, ...]:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[_recipe(run)].append(run)
    return tuple(Result(tuple(group)) for group in groups.values())


def _with_differences(rows: Sequence[Row]) -> tuple[Row, ...]:
    baselines = {(row.arch, row.detector): row.results for row in rows if row.is_baseline}
    filled = []
    for row in rows:
        others = () if row.is_baseline else baselines.get((row.arch, row.detector), ())
        to_bn = tuple(_comparison(result, others) for result in row.results)
        filled.append(replace(row, to_bn=to_bn))
    return tuple(filled)


def _comparison(result: Result, candidates: Sequence[Result]) -> Comparison | None:
    """Against BN under the same recipe: with the same box head or, if just one is there, any."""
    for keys, same_head in ((_OF_NORM, True), ((*_OF_NORM, "detector.box_head"), False)):
        near = [other for other in candidates if other.recipe(keys) == result.recipe(keys)]
        if len(near) == 1:
            pairs = {key: (result.values(key), near[0].values(key)) for key in METRICS}
            found = {key: difference(*pair) for key, pair in pairs.items() if all(pair)}
            return Comparison(found, same_head)
    return None
