"""uint8 pixels to normalized images on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnorm.data.memory_pool import MemoryPool
from attnorm.distributed import moved


class PixelNormalization:
    """(x / 255 − mean) / std by channel, in float32 whatever the result's type.

    (Half formats near 2 have steps coarser than 1/255.)

    Args:
        mean, std: three numbers each, of red, green and blue in [0, 1].
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self.device, self.dtype, self.channels_last = device, dtype, channels_last
        self._memory = MemoryPool()
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}

    def _row(self, width: int) -> tuple[Tensor, Tensor]:
        """Scale and shift of each number of a row: three channels would take five times as long."""
        if width not in self._rows:
            means, deviations = torch.tensor(self.mean), torch.tensor(self.std)
            scale, shift = 1 / (255 * deviations), -means / deviations
            self._rows[width] = (
                scale.repeat(width).to(self.device),
                shift.repeat(width).to(self.device),
            )
        return self._rows[width]

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) to (N, 3, H, W)."""
        if self.device.type == "cpu":
            rows = self.rows(len(pixels), pixels.shape[1])
            for image, target in zip(pixels, rows, strict=True):  # each one stays in the cache
                self.write(image, target)
            return self.finish(rows)
        rows_on_gpu = moved(pixels.flatten(2), self.device).float()
        scale, shift = self._row(pixels.shape[2])
        torch.addcmul(shift, rows_on_gpu, scale, out=rows_on_gpu)
        return self._as_images(rows_on_gpu)

    def rows(self, images: int, side: int) -> NDArray[np.float32]:
        """Memory for square images on the CPU, (N, H, W · 3), with anything in it."""
        return self._memory.lease((images, side, 3 * side))

    def write(self, image: Tensor, target: NDArray[np.float32]) -> None:
        """One image, uint8 (H, W, 3), into its place (H, W · 3).

        With NumPy, which takes no threads from the workers that share the processor.
        """
        target[...] = image.flatten(1).numpy()
        scale, shift = self._row(image.shape[1])
        target *= scale.numpy()
        target += shift.numpy()

    def finish(self, rows: NDArray[np.float32]) -> Tensor:
        """Images that were written (N, H, W · 3) as (N, 3, H, W)."""
        return self._as_images(torch.from_numpy(rows))

    def _as_images(self, rows: Tensor) -> Tensor:
        images = rows.view(*rows.shape[:2], -1, 3).permute(0, 3, 1, 2)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.to(self.dtype).contiguous(memory_format=layout)
