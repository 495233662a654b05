"""What a check found: figures, judged where there is something to judge them by."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from attnorm.files import write_json

EXPECTED = Path(__file__).parents[2] / "benchmarks" / "expected"


class Skipped(Exception):
    """A check cannot be made here; the message says what is missing."""


@dataclass(frozen=True)
class Setting:
    """Where a check runs.

    Attributes:
        small: shapes as small as they go and no judgement of speed: the code alone is walked.
        photos: a folder of real photographs with train/ and val/, if there is one.
    """

    device: torch.device
    small: bool
    photos: Path | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Bars:
    """Speeds measured before, which may be missed by ``factor`` at most.

    Seconds are in figures whose name ends with "µs" or "ms"; of all others, more is better.
    """

    device: str
    factor: float
    figures: dict[str, float]

    @classmethod
    def of(cls, device_name: str) -> Bars | None:
        """Those of the file whose device is part of this one's name."""
        for path in sorted(EXPECTED.glob("*.json")):
            bars = cls(**json.loads(path.read_text()))
            if bars.device in device_name:
                return bars
        return None

    def problem(self, name: str, value: float) -> str | None:
        """What is wrong with a figure; None if nothing is, or nothing was measured before."""
        known = self.figures.get(name)
        if known is None:
            return None
        if name.endswith(("µs", "ms")):
            limit, missed = known * self.factor, value > known * self.factor
        else:
            limit, missed = known / self.factor, value < known / self.factor
        return f"{name} = {value:.4g}, the bar is {limit:.4g}" if missed else None


@dataclass
class Report:
    """The figures and faults of one check, written to its file after each of them.

    What was found before a crash is then still there.
    """

    name: str
    setting: Setting
    path: Path
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unbarred: list[str] = field(default_factory=list)
    status: str = "running"
    reason: str = ""

    def __post_init__(self) -> None:
        name = torch.cuda.get_device_name() if self.setting.on_gpu else "CPU"
        self.bars = Bars.of(name)
        self.write()

    def figure(self, name: str, value: Any) -> None:
        """Something to know."""
        self.figures[name] = value
        self.write()

    def speed(self, name: str, value: float) -> None:
        """A speed, judged by the bar of this device if one was measured before."""
        if not self.setting.small:
            known = self.bars is not None and name in self.bars.figures
            if not known:
                self.unbarred.append(name)
            elif self.bars is not None and (problem := self.bars.problem(name, value)):
                self.problems.append(problem)
        self.figure(name, value)

    def aim(self, name: str, value: float, *, least: float = 0, most: float = float("inf")) -> None:
        """A ratio that the project aims at; judged on a GPU, of whole size."""
        if not self.setting.small:
            if value < least:
                self.problems.append(f"{name} = {value:.4g}, the aim is at least {least:g}")
            if value > most:
                self.problems.append(f"{name} = {value:.4g}, the aim is at most {most:g}")
        self.figure(name, value)

    def require(self, holds: bool, otherwise: str) -> None:
        """Something that has to be so everywhere."""
        if not holds:
            self.problems.append(otherwise)
            self.write()

    def end(self, status: str, reason: str = "") -> None:
        """passed, failed, skipped or broken."""
        self.status, self.reason = status, reason
        self.write()

    def write(self) -> None:
        write_json(self.path, self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        names = ("name", "status", "reason", "problems", "unbarred", "figures")
        return {name: getattr(self, name) for name in names}
