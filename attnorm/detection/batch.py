"""What travels between the loader, the network and the evaluation of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class InstanceMasks:
    """Masks of an image's M instances, each cut to a window around it.

    A window has a margin of one empty pixel wherever the image goes on, so that interpolation at
    its border is what it would be in a mask of the whole image.

    Attributes:
        pixels: uint8, 0 or 1, all windows one after another, row by row.
        windows: int64 (M, 4) on the CPU: x0, y0, x1, y1 in pixels of the image, x1 and y1 excluded.
    """

    pixels: Tensor
    windows: Tensor

    def __len__(self) -> int:
        return len(self.windows)

    def bitmaps(self) -> list[Tensor]:
        """Views of the windows, uint8 (height, width) each."""
        sides = (self.windows[:, 2:] - self.windows[:, :2]).tolist()
        parts = self.pixels.split([width * height for width, height in sides])
        return [p.view(height, width) for p, (width, height) in zip(parts, sides, strict=True)]

    @classmethod
    def from_bitmaps(cls, bitmaps: Sequence[Tensor], windows: Tensor) -> InstanceMasks:
        """The inverse of :meth:`bitmaps`."""
        empty = torch.zeros(0, dtype=torch.uint8)
        return cls(torch.cat([empty, *(bitmap.reshape(-1) for bitmap in bitmaps)]), windows)

    def to(self, device: torch.device, non_blocking: bool = False) -> InstanceMasks:
        """Pixels on ``device``; the windows stay where Python reads them."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=non_blocking))


@dataclass(frozen=True)
class Targets:
    """What there is to find in one image, in pixels of the network's input.

    Attributes:
        boxes: float32 (M, 4): x0, y0, x1, y1.
        labels: int64 (M,), 1 to the number of classes; 0 is the background.
        masks: of the M instances.
    """

    boxes: Tensor
    labels: Tensor
    masks: InstanceMasks

    def to(self, device: torch.device, non_blocking: bool = False) -> Targets:
        return Targets(
            self.boxes.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.masks.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True)
class DetectionBatch:
    """A batch on its device.

    Attributes:
        images: (N, 3, H, W), normalized, padded with zeros at the right and at the bottom.
        sizes: of the N images inside the padding.
        original_sizes: of the N image files.
        image_ids: as the data set numbers its images.
        targets: for training.
        semantic: int64 (N, H / 8, W / 8), classes from 0 on and 255 for "ignore", where the data
            set has such maps.
    """

    images: Tensor
    sizes: list[Size]
    original_sizes: list[Size]
    image_ids: list[int]
    targets: list[Targets] | None = None
    semantic: Tensor | None = None


@dataclass(frozen=True)
class Detections:
    """What was found in one image, in the model's order, best first.

    Attributes:
        boxes: float32 (D, 4): x0, y0, x1, y1 in pixels of the network's input.
        scores: float32 (D,), 0 to 1.
        labels: int64 (D,), 1 to the number of classes.
        masks: float32 (D, 28, 28), probabilities inside the box; None of a detector without masks.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)
