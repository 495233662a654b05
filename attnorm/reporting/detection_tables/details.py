"""What is kept beside a run of what its best checkpoint finds: classes, curves, pictures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnorm.detection.average_precision import AveragePrecision
from attnorm.reporting.detection_tables.table import Result
from attnorm.reporting.runs import Run

FILE = "detection_details.json"
PICTURES = "detection_pictures"
KINDS = {"bbox": "box", "segm": "mask"}
CURVES = {"AP": None, "AP50": 0.5, "AP75": 0.75}


@dataclass(frozen=True)
class ClassDifferences:
    """AN's AP minus BN's by class, in points, averaged over seeds.

    Attributes:
        row: whose differences they are.
        kind: box or mask.
    """

    row: str
    kind: str
    class_names: tuple[str, ...]
    differences: tuple[float, ...]

    def ranked(self) -> list[tuple[str, float]]:
        """From the class that AN helps most to the one that it hurts most."""
        pairs = zip(self.class_names, self.differences, strict=True)
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def summary(
    numbers: AveragePrecision, class_names: Sequence[str], category_ids: Sequence[int]
) -> dict[str, Any]:
    """AP of each class, and curves of precision over recall, by box and mask."""
    kinds = {kind: name for kind, name in KINDS.items() if kind in numbers.statistics}
    classes = list(zip(class_names, category_ids, strict=True))
    return {
        "classes": {
            name: {title: numbers.per_category[kind].get(number) for title, number in classes}
            for kind, name in kinds.items()
        },
        "curves": {
            name: {title: numbers.curve(kind, overlap) for title, overlap in CURVES.items()}
            for kind, name in kinds.items()
        },
    }


def read(run: Run) -> Mapping[str, Any] | None:
    """What is kept of the run's best checkpoint; None if nothing is, or of an earlier one."""
    path = run.folder / FILE
    if not path.exists():
        return None
    stored: dict[str, Any] = json.loads(path.read_text())
    return stored if stored["best"] == identity(run) else None


def pictures(run: Run) -> list[Path]:
    """Of what the run's best checkpoint found and missed."""
    stored = read(run) or {}
    paths = [run.folder / PICTURES / name for name in stored.get("pictures", [])]
    return [path for path in paths if path.exists()]


def curve(result: Result, kind: str, title: str) -> list[float] | None:
    """Precision at a hundred and one recalls, mean over the seeds that were evaluated in detail."""
    stored = [details for run in result.members if (details := read(run)) is not None]
    found = [details["curves"][kind][title] for details in stored if kind in details["curves"]]
    return [statistics.fmean(values) for values in zip(*found, strict=True)] or None


def class_differences(row: str, kind: str, an: Result, bn: Result) -> ClassDifferences | None:
    """None where a run of either has not been evaluated in detail."""
    stored = [[read(run) for run in result.members] for result in (an, bn)]
    if any(
        details is None or kind not in details["classes"] for side in stored for details in side
    ):
        return None
    ours, theirs = ([d["classes"][kind] for d in side if d is not None] for side in stored)
    kept, differences = [], []
    for name in ours[0]:
        sides = [[classes.get(name) for classes in side] for side in (ours, theirs)]
        if None not in sides[0] + sides[1]:
            kept.append(name)
            differences.append(statistics.fmean(sides[0]) - statistics.fmean(sides[1]))
    return ClassDifferences(row, kind, tuple(kept), tuple(differences))


def identity(run: Run) -> dict[str, Any]:
    """Which checkpoint ``best.pt`` is: it changes when a run goes on and finds a better one."""
    step, precision = run.best.get("step"), run.best["box_AP"]
    return {"step": step, "box_AP": precision, "seed": run.result["seed"]}
