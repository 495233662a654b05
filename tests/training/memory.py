"""A loader over tensors in memory, and a small network, for tests of the trainer alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnorm import AttentiveNorm2d
from attnorm.classification import Classification
from attnorm.config import Config
from attnorm.distributed import Process
from attnorm.tracking import Tracker, open_tracker
from attnorm.training.trainer import Trainer
from tests.conftest import compose_config

CPU = torch.device("cpu")
CLASSES = 5


class MemoryLoader:
    """Batches of fixed images; an epoch is a permutation that depends on its number."""

    name, reason, skipped = "memory", "for tests", 0

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, shuffle: bool) -> None:
        self.images, self.labels = images, labels
        self.batch_size, self.shuffle = batch_size, shuffle

    @property
    def num_images(self) -> int:
        return len(self.images)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole if self.shuffle else whole + (rest > 0)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(len(self.images), generator=generator)
        if not self.shuffle:
            order = torch.arange(len(self.images))
        for batch in order.split(self.batch_size)[start_batch : len(self)]:
            yield self.images[batch], self.labels[batch]

    def close(self) -> None:
        """There is nothing to stop."""

    def remedies(self, cores: int) -> list[str]:
        return []


def stripes(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy 12² images whose class is the frequency of their stripes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    phase = torch.arange(12) / 12 * 2 * torch.pi
    waves = torch.sin(phase * (labels[:, None] + 1))[:, None, None, :].expand(-1, 3, 12, -1)
    return waves + 0.3 * torch.randn(count, 3, 12, 12, generator=generator), labels


def small_network(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        AttentiveNorm2d(8, num_components=3),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


def make_config(**overrides: Any) -> Config:
    settings = {
        "epochs": 3,
        "batch_size": 10,
        "optim.lr": 2.0,
        "tracking.log_every": 2,
        "precision": "fp32",
        **overrides,
    }
    return compose_config(*(f"{key}={value}" for key, value in settings.items()))


def make_trainer(
    folder: Path,
    config: Config,
    model: nn.Module | None = None,
    loader: type[MemoryLoader] = MemoryLoader,
) -> Trainer:
    """Six batches of stripes an epoch, and 25 images to evaluate on."""
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    train = loader(*stripes(60, CLASSES), config.batch_size, shuffle=True)
    val = MemoryLoader(*stripes(25, CLASSES, seed=1), 10, shuffle=False)
    names = [f"class {index}" for index in range(CLASSES)]
    model = model or small_network(CLASSES)
    task = Classification(names, config.train, config.augment, seed=config.seed)
    return Trainer(config, task, model, train, val, Process(0, 0, 1, CPU), folder)


def make_tracker(folder: Path) -> Tracker:
    return open_tracker(folder, enabled=True, tensorboard=False)


def metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind of ``metrics.jsonl``."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]
