"""Run folders as training leaves them, whole or not: config, outcome, curves."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from attnorm.config import from_container, to_container
from attnorm.errors import UserError


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder.

    Attributes:
        status: finished, or unfinished (running or stopped), or failed as its queue recorded.
        message: what a failed run said last.
        config: as this version stores it, or as it stands in the folder if this version cannot
            read it; empty for what failed before it had a folder.
        result: the content of ``result.json``; empty before the first epoch has ended.
        metrics: the lines of ``metrics.jsonl``.
        evaluations: on other labels and test sets, the content of ``eval_NAME.json`` by name.
    """

    folder: Path
    status: str
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...] = ()
    message: str | None = None
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def lines(self, kind: str) -> list[Mapping[str, Any]]:
        """The metrics of one kind: train, eval or event."""
        return [line for line in self.metrics if line["kind"] == kind]

    def setting(self, key: str) -> Any:
        """The config's value at a dotted key, such as ``data.name``; None if there is none."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    @property
    def best(self) -> Mapping[str, Any]:
        """Epoch, step and metrics of the best evaluation; empty before the first."""
        return self.result.get("best") or {}

    @property
    def images_per_second(self) -> float | None:
        """Median of the training intervals, over all processes."""
        found = (line.get("images_per_second") for line in self.lines("train"))
        speeds = [speed for speed in found if speed is not None]
        return statistics.median(speeds) if speeds else None

    @property
    def process_hours(self) -> float | None:
        """Wall-clock hours × processes, which are GPU hours with a GPU per process."""
        if "wall_seconds" not in self.result:
            return None
        sizes = [line["world_size"] for line in self.lines("event") if "world_size" in line]
        return float(self.result["wall_seconds"]) / 3600 * (sizes[-1] if sizes else 1)

    @property
    def machine(self) -> tuple[str, ...]:
        """What its speed may be compared on: device, threads, and the version of torch."""
        hardware = self.result.get("hardware") or {}
        versions = self.result.get("versions") or {}
        parts = (hardware.get("device"), hardware.get("threads"), versions.get("torch"))
        return tuple(map(str, parts))


def several_machines(runs: Sequence[Run]) -> bool:
    """Whether their speeds may not be averaged or compared."""
    return len({run.machine for run in runs}) > 1


def common_speed(runs: Sequence[Run]) -> float | None:
    """Images per second, the median over the runs; None where they ran on different machines."""
    if several_machines(runs):
        return None
    return median(run.images_per_second for run in runs)


def median(values: Iterable[float | None]) -> float | None:
    """Of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def read_runs(folder: Path) -> list[Run]:
    """Every run below ``folder``, and what queues there recorded as failed.

    Raises:
        UserError: a run's files cannot be read.
    """
    failures = _failures(folder)
    marks = {path.parent for path in folder.rglob("result.json")}
    marks |= {path.parent for path in folder.rglob("metrics.jsonl")}
    runs = [read_run(path, failures.pop(path.resolve(), None)) for path in sorted(marks)]
    # What failed before it had a folder.
    missing = [Run(path, "failed", {}, {}, message=text) for path, text in failures.items()]
    return runs + missing


def read_run(folder: Path, failure: str | None = None) -> Run:
    """The run of one folder; ``failure`` is what its queue recorded.

    Raises:
        UserError: its files cannot be read.
    """
    try:
        config = _config(folder / "config.yaml")
        result: dict[str, Any] = {}
        if (folder / "result.json").exists():
            result = json.loads((folder / "result.json").read_text())
        evaluations = {
            path.stem.removeprefix("eval_"): json.loads(path.read_text())
            for path in sorted(folder.glob("eval_*.json"))
        }
        metrics = _metrics(folder / "metrics.jsonl")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{folder} is not a whole run folder ({error}): move it out of the folder of runs."
        ) from error
    finished = result.get("status") == "finished"
    status = "finished" if finished else "failed" if failure else "unfinished"
    message = None if finished else failure
    return Run(folder, status, config, result, metrics, message, evaluations)


def _config(path: Path) -> Mapping[str, Any]:
    """What an older version left out is filled in, so that its runs compare with newer ones."""
    stored = yaml.safe_load(path.read_text())
    if not isinstance(stored, dict):
        raise ValueError(f"{path.name} holds no config")
    try:
        return to_container(from_container(stored))
    except UserError:  # of another version: shown as it is, and of no row
        return stored


def _metrics(path: Path) -> tuple[Mapping[str, Any], ...]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # A line that is being written, or that a kill cut short, has no end.
    return tuple(json.loads(line) for line in lines if line.endswith("\n"))


def _failures(folder: Path) -> dict[Path, str]:
    """The last words of failed runs by folder, from every ``queue/NAME.json``."""
    failures: dict[Path, str] = {}
    for path in folder.rglob("queue/*.json"):
        entry = json.loads(path.read_text())
        if entry["status"] == "failed":
            failures[(path.parent.parent / path.stem).resolve()] = entry["message"]
    return failures
