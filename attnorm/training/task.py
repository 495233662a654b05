"""The contract between training and what is learnt: a task's loss, its metrics, its headline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from attnorm.config import Config
from attnorm.distributed import Placement
from attnorm.training.precision import Precision

Metrics = dict[str, float | None]


class BatchLoader(Protocol):
    """What training and evaluation need of a loader: batches, already on the device."""

    name: str
    reason: str  # why this one, in a line
    skipped: int  # broken samples that were replaced

    @property
    def num_images(self) -> int:
        """Images in the data set, over all processes."""

    def __len__(self) -> int:
        """Batches of an epoch on this process."""

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Any]:
        """The batches of an epoch from ``start_batch`` on; only the task knows what is in them."""

    def close(self) -> None:
        """Stop worker processes and pipelines."""

    def remedies(self, cores: int) -> list[str]:
        """What would make it faster on ``cores`` for each process; none where nothing would."""


@dataclass(frozen=True)
class StepOutput:
    """What a task makes of a micro-batch.

    Attributes:
        loss: mean over its images, (), with a gradient.
        sums: by name, over its images, () each and on the device, without a gradient.
        count: its images.
    """

    loss: Tensor
    sums: Mapping[str, Tensor]
    count: int


@dataclass(frozen=True)
class Metric:
    """How a number of a task is named and written: ``mean error 5.28 %``.

    Attributes:
        short: its name where there is little room.
        in_lines: whether it stands in the lines that a run prints, or in tables and curves alone.
    """

    label: str
    short: str = ""
    digits: int = 2
    unit: str = ""
    in_lines: bool = True

    def text(self, value: float | None, digits: int | None = None) -> str:
        if value is None:
            return "n/a"
        return f"{value:.{self.digits if digits is None else digits}f}{self.unit}"


class Task(ABC):
    """A kind of problem. The trainer sums, records, ranks and shows what it names, no more.

    Attributes:
        sums: names of :attr:`StepOutput.sums`.
        train_metrics: what :meth:`train_values` gives, beside the loss.
        eval_metrics: what :meth:`evaluate` gives.
        headline: the one of them that ``best.pt`` follows.
        lower_is_better: whether that is the lowest.
    """

    sums: ClassVar[tuple[str, ...]] = ()
    train_metrics: ClassVar[Mapping[str, Metric]] = {}
    eval_metrics: ClassVar[Mapping[str, Metric]]
    headline: ClassVar[str]
    lower_is_better: ClassVar[bool] = True

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, step: int) -> StepOutput:
        """Forward pass and loss of a micro-batch, called under autocast.

        ``step`` counts optimizer steps: what is drawn at random is a function of the seed and it.
        """

    @abstractmethod
    def evaluate(
        self, model: nn.Module, loader: BatchLoader, precision: Precision, device: torch.device
    ) -> Metrics:
        """Every image of ``loader`` once, over all processes; leaves the model as it was.

        Raises:
            RuntimeError: the processes together did not see exactly ``loader.num_images`` images.
        """

    def train_values(self, means: Mapping[str, float]) -> Metrics:
        """Metrics of a training interval from the means of :attr:`sums` over its images."""
        return dict(means)

    def stored(self) -> dict[str, Any]:
        """Plain values that a checkpoint holds beside the weights, for those who evaluate it."""
        return {}

    def fingerprint(self) -> dict[str, Any]:
        """What tells the data of this run from others, for its ``result.json``."""
        return {}

    def report(self, folder: Path) -> dict[str, Any]:
        """Write what the last evaluation found into ``folder``, on rank 0.

        Returns:
            Plain values that belong beside the metrics, such as those of single classes.
        """
        return {}

    def pictures(self) -> Mapping[str, Tensor]:
        """Of the last evaluation, on rank 0: by tag, uint8 (H, W, 3)."""
        return {}


class ConfigurableTask(Task):
    """A task that a config can select: it also says how its model and its loaders are built."""

    @classmethod
    @abstractmethod
    def check(cls, config: Config, placement: Placement) -> Config:
        """Refuse data and a model that cannot be had; fills in what depends on the data.

        Raises:
            UserError: with the key, and the way out.
        """

    @classmethod
    @abstractmethod
    def num_train_images(cls, config: Config) -> int:
        """Images of an epoch, over all processes."""

    @classmethod
    @abstractmethod
    def from_data(cls, config: Config) -> Self:
        """The task of a new run."""

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, config: Config, state: Mapping[str, Any], path: Path) -> Self:
        """The task that a checkpoint was trained on, from what :meth:`stored` put there.

        Raises:
            UserError: it does not say enough.
        """

    @abstractmethod
    def build_model(self, config: Config, load_pretrained: bool = True) -> nn.Module:
        """The network; without ``load_pretrained`` for weights that a checkpoint replaces."""

    @abstractmethod
    def train_loader(self, config: Config, placement: Placement) -> BatchLoader:
        """Batches to train on, each epoch in another order."""

    @abstractmethod
    def eval_loader(self, config: Config, placement: Placement) -> BatchLoader:
        """The whole validation set, every image once over all processes.

        Raises:
            UserError: it cannot be had, or does not fit the task.
        """


@dataclass(frozen=True)
class Score:
    """An evaluation, the epoch (counted from 1) after which it was made, and the step.

    Metrics of averaged weights, where there are any, are called ``ema_…``.
    """

    epoch: int
    step: int
    metrics: Metrics

    def flat(self) -> dict[str, Any]:
        """As it stands in checkpoints and in ``result.json``."""
        return {"epoch": self.epoch, "step": self.step, **self.metrics}

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Score:
        metrics = {key: value for key, value in values.items() if key not in ("epoch", "step")}
        return cls(values["epoch"], values["step"], metrics)

    def rank(self, task: Task) -> tuple[float, int]:
        """Lower is better: by the task's headline, the earliest of equals."""
        value = self.metrics[task.headline]
        assert value is not None, "a headline is always there"
        return (value if task.lower_is_better else -value), self.step
