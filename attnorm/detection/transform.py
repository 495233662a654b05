"""A decoded image to pixels of the network's input, and what is marked in it with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from attnorm.detection.batch import Size
from attnorm.distributed import moved


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of an image file go: mirrored, then resized.

    Attributes:
        original: height and width of the file.
        size: height and width in the network's input.
    """

    original: Size
    size: Size
    flip: bool = False

    @property
    def scale(self) -> tuple[float, float]:
        """Of x and of y."""
        return self.size[1] / self.original[1], self.size[0] / self.original[0]

    def pixels(self, image: Tensor) -> Tensor:
        """An image, uint8 (H, W, 3), as uint8 (h, w, 3).

        Bilinear without antialiasing, as in OpenCV, which the results of 2019 come from.
        """
        if self.flip:
            image = image.flip(1)
        if self.size == self.original:
            return image
        planes = image.permute(2, 0, 1)[None]
        resized = interpolate(planes, self.size, mode="bilinear")[0]
        return resized.permute(1, 2, 0).contiguous()

    def boxes(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """x0, y0, x1, y1 in pixels of the file, (M, 4), in those of the input."""
        if self.flip:
            boxes = boxes[:, [2, 1, 0, 3]]
            boxes[:, [0, 2]] = self.original[1] - boxes[:, [0, 2]]
        resized: NDArray[np.float64] = boxes * np.tile(self.scale, 2)
        return resized

    def points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """x and y, (P, 2), likewise."""
        if self.flip:
            points = np.stack([self.original[1] - points[:, 0], points[:, 1]], axis=1)
        return points * self.scale

    def sources(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows and columns of the file that are nearest to those of the input."""
        down = rows * self.original[0] // self.size[0]
        across = columns * self.original[1] // self.size[1]
        return down, self.original[1] - 1 - across if self.flip else across


def resized_size(original: Size, short_side: int, max_side: int) -> Size:
    """Height and width with the short side at ``short_side``, the other one at most ``max_side``.

    Rounded down as in torchvision's ``GeneralizedRCNNTransform``: 480 × 640 becomes 800 × 1066.
    """
    scale = min(short_side / min(original), max_side / max(original))
    height, width = (max(1, math.floor(side * scale)) for side in original)
    return height, width


def padded(sizes: Sequence[Size], divisible: int) -> Size:
    """Height and width that hold all of ``sizes``, multiples of ``divisible``."""
    height, width = (-(-max(sides) // divisible) * divisible for sides in zip(*sizes, strict=True))
    return height, width


class PaddedNormalization:
    """Pixels to (x / 255 − mean) / std by channel in float32, and zeros around them.

    Args:
        mean, std: three numbers each, of red, green and blue in [0, 1].
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        divisible: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> None:
        self.device, self._divisible = device, divisible
        self._dtype, self._memory_format = dtype, memory_format
        means, deviations = torch.tensor(mean), torch.tensor(std)
        self._channel_scale = (1 / (255 * deviations)).to(device)
        self._channel_shift = (-means / deviations).to(device)
        self._scale, self._shift = self._channel_scale, self._channel_shift

    def __call__(self, pixels: Tensor, sizes: Sequence[Size]) -> Tensor:
        """All pixels, uint8 and one image of ``sizes`` after another, to (N, 3, H, W)."""
        height, width = padded(sizes, self._divisible)
        self._widen(3 * width)
        pixels = moved(pixels, self.device)
        rows = torch.zeros(len(sizes), height, 3 * width, device=self.device)
        parts = pixels.split([3 * h * w for h, w in sizes])
        write = self._write_on_cpu if self.device.type == "cpu" else self._write
        for image, (h, w), target in zip(parts, sizes, rows, strict=True):
            write(image.view(h, 3 * w), target[:h, : 3 * w])
        images = rows.view(len(sizes), height, width, 3).permute(0, 3, 1, 2)
        return images.to(self._dtype).contiguous(memory_format=self._memory_format)

    def _write(self, image: Tensor, target: Tensor) -> None:
        """One image, uint8 (h, 3 · w), into its place."""
        columns = slice(image.shape[1])
        torch.addcmul(self._shift[columns], image.float(), self._scale[columns], out=target)

    def _write_on_cpu(self, image: Tensor, target: Tensor) -> None:
        # NumPy takes no threads from the workers that share the processor.
        columns, place = slice(image.shape[1]), target.numpy()
        place[...] = image.numpy()
        place *= self._scale[columns].numpy()
        place += self._shift[columns].numpy()

    def _widen(self, length: int) -> None:
        # A number for each of a row: loops over three channels would take five times as long.
        if len(self._scale) < length:
            self._scale = self._channel_scale.repeat(length // 3)
            self._shift = self._channel_shift.repeat(length // 3)
