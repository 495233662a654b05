"""uint8 pixels to normalized images on the device."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# References to an array that only the list of rooms holds: the list's, the loop's, the call's.
_UNUSED = 3


class Normalization:
    """(x / 255 − mean) / std by channel, in float32 whatever the result's type.

    (Half formats near 2 have steps coarser than 1/255.)

    Args:
        mean, std: three numbers each, of red, green and blue in [0, 1].
        width: of the images, in pixels.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        width: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> None:
        self._device, self._dtype = device, dtype
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        means, deviations = torch.tensor(mean), torch.tensor(std)
        self._rooms: list[NDArray[np.float32]] = []
        # A number for each of a row: loops over three channels would take five times as long.
        self._scale = (1 / (255 * deviations)).repeat(width).to(device)
        self._shift = (-means / deviations).repeat(width).to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) to (N, 3, H, W)."""
        if self._device.type == "cpu":
            rows = self.room(len(pixels))
            for image, target in zip(pixels, rows, strict=True):  # each one stays in the cache
                self.write(image, target)
            return self.finish(rows)
        rows_on_gpu = pixels.flatten(2).to(self._device, non_blocking=True).float()
        torch.addcmul(self._shift, rows_on_gpu, self._scale, out=rows_on_gpu)
        return self._as_images(rows_on_gpu)

    def room(self, images: int) -> NDArray[np.float32]:
        """Memory for square images on the CPU, (N, H, W · 3), with anything in it.

        An earlier batch's, once nobody holds that any more: a batch of fresh memory takes longer to
        come (the system clears every page) than to fill.
        """
        shape = (images, len(self._scale) // 3, len(self._scale))
        for rows in self._rooms:
            if rows.shape == shape and sys.getrefcount(rows) == _UNUSED:
                return rows
        self._rooms.append(np.empty(shape, dtype=np.float32))
        return self._rooms[-1]

    def write(self, image: Tensor, target: NDArray[np.float32]) -> None:
        """One image, uint8 (H, W, 3), into its place (H, W · 3).

        With NumPy, which takes no threads from the workers that share the processor.
        """
        target[...] = image.flatten(1).numpy()
        target *= self._scale.numpy()
        target += self._shift.numpy()

    def finish(self, rows: NDArray[np.float32]) -> Tensor:
        """Images that were written (N, H, W · 3) as (N, 3, H, W)."""
        return self._as_images(torch.from_numpy(rows))

    def _as_images(self, rows: Tensor) -> Tensor:
        images = rows.view(*rows.shape[:2], -1, 3).permute(0, 3, 1, 2)
        return images.to(self._dtype).contiguous(memory_format=self._layout)
