"""Run folders as train.py leaves them, whole or not: config, outcome, curves."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from attnorm.errors import UserError


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder.

    Attributes:
        status: finished, or unfinished (running or stopped), or failed as its queue recorded.
        message: what a failed run said last.
        result: the content of ``result.json``; empty before the first epoch has ended.
        metrics: the lines of ``metrics.jsonl``.
    """

    folder: Path
    status: str
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...] = ()
    message: str | None = None

    def lines(self, kind: str) -> list[Mapping[str, Any]]:
        """The metrics of one kind: train, eval or event."""
        return [line for line in self.metrics if line["kind"] == kind]

    @property
    def images_per_second(self) -> float | None:
        """Median of the training intervals, over all processes."""
        speeds = [line["images_per_second"] for line in self.lines("train")]
        return statistics.median(speeds) if speeds else None

    @property
    def process_hours(self) -> float | None:
        """Wall-clock hours × processes, which are GPU hours with a GPU per process."""
        if "wall_seconds" not in self.result:
            return None
        sizes = [line["world_size"] for line in self.lines("event") if "world_size" in line]
        return float(self.result["wall_seconds"]) / 3600 * (sizes[-1] if sizes else 1)


def read_runs(folder: Path) -> list[Run]:
    """Every run below ``folder``, and what queues there recorded as failed.

    Raises:
        UserError: a run's files cannot be read.
    """
    failures = _failures(folder)
    marks = {path.parent for path in folder.rglob("result.json")}
    marks |= {path.parent for path in folder.rglob("metrics.jsonl")}
    runs = [_read_run(path, failures.pop(path.resolve(), None)) for path in sorted(marks)]
    # What failed before it had a folder.
    missing = [Run(path, "failed", {}, {}, message=text) for path, text in failures.items()]
    return runs + missing


def _read_run(folder: Path, failure: str | None) -> Run:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        result: dict[str, Any] = {}
        if (folder / "result.json").exists():
            result = json.loads((folder / "result.json").read_text())
        metrics = _metrics(folder / "metrics.jsonl")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{folder} is not a whole run folder ({error}): move it out of the folder of runs."
        ) from error
    finished = result.get("status") == "finished"
    status = "finished" if finished else "failed" if failure else "unfinished"
    return Run(folder, status, config, result, metrics, None if finished else failure)


def _metrics(path: Path) -> tuple[Mapping[str, Any], ...]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # A line that is being written, or that a kill cut short, has no end.
    return tuple(json.loads(line) for line in lines if line.endswith("\n"))


def _failures(folder: Path) -> dict[Path, str]:
    """The last words of failed runs by folder, from every ``queue.json``."""
    failures: dict[Path, str] = {}
    for path in folder.rglob("queue.json"):
        for name, entry in json.loads(path.read_text()).items():
            if entry["status"] == "failed":
                failures[(path.parent / name).resolve()] = entry["message"]
    return failures
