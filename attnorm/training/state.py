"""The whole state of a run between two steps, as one object that can be saved and put back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnorm import distributed
from attnorm.distributed import Process
from attnorm.training import checkpoint
from attnorm.training.ema import WeightAverage
from attnorm.training.meter import TrainMeter
from attnorm.training.task import Score, Task


class TrainState:
    """What training changes.

    Attributes:
        epoch: Epochs completed, their evaluation included.
        step_in_epoch: Optimizer steps completed of the epoch that goes on.
        scores: Every evaluation so far.
        restarts: How often the run was continued by a new process.
        rewinds: How often it went back to a checkpoint because of a loss that was not finite.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        average: WeightAverage | None,
        process: Process,
        steps_per_epoch: int,
    ) -> None:
        self.model, self.optimizer, self.scaler, self.average = model, optimizer, scaler, average
        self.task, self.process, self.steps_per_epoch = task, process, steps_per_epoch
        self.meter = TrainMeter(task.sums, process.device)
        self.epoch = 0
        self.step_in_epoch = 0
        self.scores: list[Score] = []
        self.restarts = 0
        self.rewinds = 0
        self._seconds_before = 0.0
        self._started = time.monotonic()

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    @property
    def best(self) -> Score | None:
        """The evaluation with the best headline, the earliest of equals."""
        return min(self.scores, key=lambda score: score.rank(self.task), default=None)

    @property
    def last(self) -> Score | None:
        """The newest evaluation."""
        return self.scores[-1] if self.scores else None

    def finish_epoch(self) -> None:
        """Count the epoch that has just ended."""
        self.epoch, self.step_in_epoch = self.epoch + 1, 0

    @property
    def wall_seconds(self) -> float:
        """Seconds of training, over all processes that continued one another."""
        return self._seconds_before + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Everything that a continued run needs, as tensors and plain containers. Collective."""
        own: dict[str, Any] = {"random": torch.get_rng_state(), "meter": self.meter.state_dict()}
        if self.process.device.type == "cuda":
            own["random_cuda"] = torch.cuda.get_rng_state(self.process.device)
        elif self.process.device.type == "mps":
            own["random_mps"] = torch.mps.get_rng_state()
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.average.state_dict() if self.average else None,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "step": self.step,
            "scores": [score.flat() for score in self.scores],
            "processes": distributed.gather_objects(own),
            "restarts": self.restarts,
            "rewinds": self.rewinds,
            "wall_seconds": self.wall_seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any], path: Path) -> None:
        """Put back what :meth:`state_dict` returned; ``path`` is for messages.

        Raises:
            UserError: the weights are another model's.
        """
        checkpoint.load_weights(self.model, state["model"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        self.scores = [Score.from_flat(score) for score in state["scores"]]
        self.restarts, self.rewinds = state["restarts"], state["rewinds"]
        self._seconds_before, self._started = state["wall_seconds"], time.monotonic()
        self.meter = TrainMeter(self.task.sums, self.process.device)
        if self.process.rank < len(state["processes"]):
            own = state["processes"][self.process.rank]
            self.meter.load_state_dict(own["meter"])
            torch.set_rng_state(own["random"])
            if "random_cuda" in own and self.process.device.type == "cuda":
                torch.cuda.set_rng_state(own["random_cuda"], self.process.device)
            if "random_mps" in own and self.process.device.type == "mps":
                torch.mps.set_rng_state(own["random_mps"])
