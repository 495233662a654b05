"""Errors class by class of a run's best checkpoint, evaluated once and kept beside it."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attnorm.files import write_json
from attnorm.reporting.runs import Run
from attnorm.reporting.table1.table import Result
from attnorm.run.trained import load_trained

logger = logging.getLogger(__name__)
FILE = "per_class.json"


@dataclass(frozen=True)
class ClassDifferences:
    """AN's top-1 error minus BN's by class, in percentage points, averaged over seeds."""

    arch: str
    class_names: tuple[str, ...]
    differences: tuple[float, ...]

    def ranked(self) -> list[tuple[str, float]]:
        """From the class that AN helps most to the one that it hurts most."""
        pairs = zip(self.class_names, self.differences, strict=True)
        return sorted(pairs, key=lambda pair: (pair[1], pair[0]))


def per_class_errors(checkpoint: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Top-1 error in percent by class (None for one without images), over the validation set."""
    trained = load_trained(checkpoint, overrides)
    classes = len(trained.class_names)
    images = torch.zeros(classes, dtype=torch.int64)
    wrong = torch.zeros(classes, dtype=torch.int64)
    for batch, labels in trained.batches():
        missed = (trained.logits(batch).argmax(1) != labels).cpu()
        images += labels.cpu().bincount(minlength=classes)
        wrong += labels.cpu()[missed].bincount(minlength=classes)
    errors = [
        100 * w / n if n else None for w, n in zip(wrong.tolist(), images.tolist(), strict=True)
    ]
    return {"class_names": trained.class_names, "images": images.tolist(), "top1_error": errors}


def evaluate_missing(results: Sequence[Result], overrides: Sequence[str] = ()) -> None:
    """Write ``per_class.json`` into every run folder that has a best checkpoint and lacks it."""
    for run in (run for result in results for run in result.members):
        if read(run) is None and (run.folder / "best.pt").exists():
            logger.info("evaluating %s class by class", run.folder / "best.pt")
            errors = per_class_errors(run.folder / "best.pt", overrides)
            write_json(run.folder / FILE, {"best": _identity(run), **errors})


def read(run: Run) -> Mapping[str, Any] | None:
    """What is stored for the run's best checkpoint; None if nothing is, or of an earlier one."""
    path = run.folder / FILE
    if not path.exists():
        return None
    stored: dict[str, Any] = json.loads(path.read_text())
    return stored if stored["best"] == _identity(run) else None


def class_differences(arch: str, an: Result, bn: Result) -> ClassDifferences | None:
    """None where a run of either has not been evaluated class by class."""
    stored = [[read(run) for run in result.members] for result in (an, bn)]
    if any(entry is None for entries in stored for entry in entries):
        return None
    ours, theirs = ([entry for entry in entries if entry] for entries in stored)
    names = ours[0]["class_names"]
    kept, differences = [], []
    for index, name in enumerate(names):
        errors = [[entry["top1_error"][index] for entry in entries] for entries in (ours, theirs)]
        if None not in errors[0] + errors[1]:
            kept.append(name)
            differences.append(statistics.fmean(errors[0]) - statistics.fmean(errors[1]))
    return ClassDifferences(arch, tuple(kept), tuple(differences))


def _identity(run: Run) -> dict[str, Any]:
    """Which checkpoint ``best.pt`` is: it changes when a run goes on and finds a better one."""
    step, error = run.best.get("step"), run.best["top1_error"]
    return {"step": step, "top1_error": error, "seed": run.result["seed"]}
