"""One random batch, made once and handed out again and again: the loader that costs nothing.

It measures how fast training itself is, and needs no data.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attnorm.data.loader import Loader
from attnorm.data.sampling import Plan


class SyntheticLoader(Loader):
    """Normally distributed images and uniform labels, fixed for the life of the loader."""

    name = "synthetic"
    reason = "asked for: one random batch in memory, for measuring speed"

    def __init__(
        self,
        plan: Plan,
        *,
        image_size: int,
        num_classes: int,
        device: torch.device,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> None:
        self.num_images = plan.num_images
        self._sizes = [len(batch) for batch in plan.batches(0, 0)]
        generator = torch.Generator().manual_seed(plan.seed + plan.rank)
        shape = (max(self._sizes, default=0), 3, image_size, image_size)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        images = torch.randn(shape, generator=generator).to(device, dtype)
        self._images = images.contiguous(memory_format=layout)
        labels = torch.randint(num_classes, shape[:1], generator=generator)
        self._labels = labels.to(device)

    def __len__(self) -> int:
        return len(self._sizes)

    def remedies(self, cores: int) -> list[str]:
        """None: it does nothing that could be done faster."""
        return []

    def _batches(self, epoch: int, start_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for size in self._sizes[start_batch:]:
            yield self._images[:size], self._labels[:size]
