"""A loader over tensors in memory, and a small network, for tests of the trainer alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from attnorm import AttentiveNorm2d


class MemoryLoader:
    """Batches of fixed images; an epoch is a permutation that depends on its number."""

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
