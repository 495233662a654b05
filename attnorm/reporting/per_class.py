"""Errors class by class of a run's checkpoint, evaluated once and kept beside it."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from attnorm.files import write_json
from attnorm.reporting.runs import Run
from attnorm.run.trained import load_trained

logger = logging.getLogger(__name__)
Moment = Literal["best", "final"]
# The checkpoint of each moment, and what its errors are kept in.
FILES: Mapping[Moment, tuple[str, str]] = {
    "best": ("best.pt", "per_class.json"),
    "final": ("last.pt", "per_class_final.json"),
}


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


def evaluate_missing(
    runs: Iterable[Run], overrides: Sequence[str] = (), moment: Moment = "best"
) -> None:
    """Write the errors into every run folder that has the moment's checkpoint and lacks them."""
    checkpoint, file = FILES[moment]
    for run in runs:
        if read(run, moment) is None and (run.folder / checkpoint).exists():
            logger.info("evaluating %s class by class", run.folder / checkpoint)
            errors = per_class_errors(run.folder / checkpoint, overrides)
            write_json(run.folder / file, {moment: _identity(run, moment), **errors})


def read(run: Run, moment: Moment = "best") -> Mapping[str, Any] | None:
    """What is stored for the run's checkpoint; None if nothing is, or of an earlier one."""
    path = run.folder / FILES[moment][1]
    if not path.exists():
        return None
    stored: dict[str, Any] = json.loads(path.read_text())
    return stored if stored[moment] == _identity(run, moment) else None


def mean_by_class(runs: Iterable[Run], moment: Moment = "best") -> dict[str, float] | None:
    """The mean over runs by class, of classes with images; None where a run lacks its errors."""
    stored = [read(run, moment) for run in runs]
    known = [entry for entry in stored if entry is not None]
    if not known or len(known) < len(stored):
        return None
    by_run = [dict(zip(entry["class_names"], entry["top1_error"], strict=True)) for entry in known]
    return {
        name: statistics.fmean(errors[name] for errors in by_run)
        for name in known[0]["class_names"]
        if all(errors.get(name) is not None for errors in by_run)
    }


def class_differences(arch: str, an: Iterable[Run], bn: Iterable[Run]) -> ClassDifferences | None:
    """At each run's best epoch; None where one of either has not been evaluated class by class."""
    ours, theirs = mean_by_class(an), mean_by_class(bn)
    if ours is None or theirs is None:
        return None
    names = tuple(name for name in ours if name in theirs)
    return ClassDifferences(arch, names, tuple(ours[name] - theirs[name] for name in names))


def _identity(run: Run, moment: Moment) -> dict[str, Any]:
    """Which checkpoint it is: it changes when a run goes on."""
    evaluated = run.result.get(moment) or {}
    step, error = evaluated.get("step"), evaluated["top1_error"]
    return {"step": step, "top1_error": error, "seed": run.result["seed"]}
