"""Cells of a grid: runs that differ in their seed alone, and how far each is from batch norm."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnorm.errors import UserError
from attnorm.reporting.comparison import Difference, margin_of, paired_difference
from attnorm.reporting.runs import Run, common_speed, read_runs, several_machines

# What says where and how runs are kept, and not what they are.
_ASIDE = (
    "name",
    "seed",
    "tracking",
    "checkpoint",
    "resume",
    "device",
    "timeout_minutes",
)
BASELINE = "bn"
_PLACES = ("attentive_", "squeeze_")  # of an architecture, which batch norm does not ask for


@dataclass(frozen=True, eq=False)
class Cell:
    """The finished runs of one config, by seed.

    Attributes:
        label: what it differs in from the grid's other cells: key and value.
        to_bn: final top-1 error against batch norm with all else equal, over the seeds that both
            have; None for batch norm itself, and where there is none.
        speed_to_bn: img/s against the same, on the same kind of machine.
    """

    label: Mapping[str, str]
    runs: tuple[Run, ...]
    to_bn: Difference | None = None
    speed_to_bn: float | None = None

    @property
    def norm(self) -> str:
        return str(self.runs[0].setting("norm.name"))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted(int(run.config["seed"]) for run in self.runs))

    def errors(self, key: str = "top1_error") -> dict[int, float]:
        """By seed: of the last epoch, in percent."""
        found = {int(run.config["seed"]): run.result["final"].get(key) for run in self.runs}
        return {seed: error for seed, error in found.items() if error is not None}

    @property
    def error(self) -> float:
        return statistics.fmean(self.errors().values())

    @property
    def margin(self) -> float | None:
        """Half the width of the error's 95 % confidence interval."""
        return margin_of(list(self.errors().values()))

    @property
    def images_per_second(self) -> float | None:
        """Median over the runs; None where they ran on different machines."""
        return common_speed(self.runs)

    @property
    def process_hours(self) -> float | None:
        """Of all runs of the cell."""
        hours = [run.process_hours for run in self.runs]
        known = [value for value in hours if value is not None]
        return sum(known) if known else None

    def as_dict(self) -> dict[str, Any]:
        difference = self.to_bn
        return {
            **self.label,
            "norm": self.norm,
            "seeds": list(self.seeds),
            "top1_errors": [self.errors()[seed] for seed in self.seeds],
            "top1_error": self.error,
            "top1_margin": self.margin,
            "to_bn": difference.value if difference else None,
            "to_bn_margin": difference.margin if difference else None,
            "images_per_second": self.images_per_second,
            "speed_to_bn": self.speed_to_bn,
            "process_hours": self.process_hours,
        }


@dataclass(frozen=True)
class Table:
    """The cells of a folder of runs, and the runs that did not finish."""

    runs: Path
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    unfinished: tuple[Run, ...]
    failed: tuple[Run, ...]


def build_table(runs: Path) -> Table:
    """Of every classification run below ``runs``.

    Raises:
        UserError: there are none, or a run's files cannot be read.
    """
    found = [run for run in read_runs(runs) if run.setting("task.name") in ("classification", None)]
    finished = [run for run in found if run.status == "finished" and run.result.get("final")]
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in finished:
        groups[_identity(run)].append(run)
    if not found:
        raise UserError(f"{runs} holds no runs.")
    axes = _axes([members[0] for members in groups.values()])
    cells = [
        Cell({axis: _shown(members[0], axis) for axis in axes}, tuple(members))
        for members in groups.values()
    ]
    cells.sort(key=lambda cell: ([cell.label[axis] for axis in axes], cell.norm != BASELINE))
    return Table(
        runs,
        axes,
        tuple(_compared(cell, cells) for cell in cells),
        tuple(run for run in found if run.status == "unfinished"),
        tuple(run for run in found if run.status == "failed"),
    )


def _identity(run: Run, without: Sequence[str] = ()) -> str:
    """Equal for runs that differ in their seed alone, on the same data."""
    config = {k: v for k, v in run.config.items() if k not in _ASIDE and k not in without}
    data = {k: v for k, v in config["data"].items() if k not in ("root", "workers")}
    parts = {**config, "data": data, "files": run.result.get("data")}
    return json.dumps(parts, sort_keys=True)


def _surroundings(run: Run) -> str:
    """Equal for runs that differ in their normalizer, and in where it sits, alone."""
    arch = {k: v for k, v in run.config["arch"].items() if not k.startswith(_PLACES)}
    return _identity(run, ("norm", "arch")) + json.dumps(arch, sort_keys=True)


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {prefix: json.dumps(value)}
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _axes(runs: Sequence[Run]) -> tuple[str, ...]:
    """Architecture and recipe, where there are several, and what else differs within them."""
    named = [
        key for key in ("arch.name", "recipe_name") if len({run.setting(key) for run in runs}) > 1
    ]
    alike: dict[tuple[Any, ...], list[dict[str, str]]] = defaultdict(list)
    for run in runs:
        group = tuple(run.setting(key) for key in ("arch.name", "recipe_name", "norm.name"))
        alike[group].append(_flat({k: v for k, v in run.config.items() if k not in _ASIDE}))
    others = {
        key
        for flats in alike.values()
        for key in {key for flat in flats for key in flat}
        if len({flat.get(key) for flat in flats}) > 1
    }
    return (*named, *sorted(others - {"data.root", "data.workers"}))


def _shown(run: Run, axis: str) -> str:
    value = run.setting(axis)
    return f"{value:g}" if isinstance(value, float) else str(value)


def is_compared_with(cell: Cell, other: Cell) -> bool:
    """Whether ``other`` is batch norm under everything else of the cell."""
    if cell.norm == BASELINE or other.norm != BASELINE:
        return False
    return _surroundings(cell.runs[0]) == _surroundings(other.runs[0])


def _compared(cell: Cell, cells: Sequence[Cell]) -> Cell:
    baselines = [other for other in cells if is_compared_with(cell, other)]
    if not baselines:
        return cell
    (bn, *_) = baselines
    ours, theirs = cell.errors(), bn.errors()
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    speeds = cell.images_per_second, bn.images_per_second
    comparable = not several_machines([*cell.runs, *bn.runs])
    ratio = None
    if speeds[0] and speeds[1] and comparable:
        ratio = speeds[0] / speeds[1]
    return Cell(cell.label, cell.runs, paired_difference(pairs) if pairs else None, ratio)
