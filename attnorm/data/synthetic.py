"""One random batch, made once and handed out again and again: the loader that costs nothing.

It measures how fast training itself is, and needs no data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
        image_size: Callable[[int], int],
        num_classes: int,
        device: torch.device,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> None:
        """
        Args:
            image_size: of an epoch.
        """
        self.num_images = plan.num_images
        self._seed, self._image_size = plan.seed + plan.rank, image_size
        self._sizes = [len(batch) for batch in plan.batches(0, 0)]
        self._num_classes, self._device, self._dtype = num_classes, device, dtype
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._images, self._labels = self._made(image_size(0))

    def _made(self, side: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self._seed)
        shape = (max(self._sizes, default=0), 3, side, side)
        images = torch.randn(shape, generator=generator).to(self._device, self._dtype)
        labels = torch.randint(self._num_classes, shape[:1], generator=generator)
        return images.contiguous(memory_format=self._layout), labels.to(self._device)

    def __len__(self) -> int:
        return len(self._sizes)

    def remedies(self, cores: int) -> list[str]:
        """None: it does nothing that could be done faster."""
        return []

    def _batches(self, epoch: int, start_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        if self._images.shape[-1] != self._image_size(epoch):
            self._images, self._labels = self._made(self._image_size(epoch))
        for size in self._sizes[start_batch:]:
            yield self._images[:size], self._labels[:size]
