"""Scenes of shapes and pyramids of noise that tests of the heads share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from attnorm.detection.batch import InstanceMasks, Size, Targets

CLASSES = 5  # with the background


def ellipses(size: Size, boxes: Sequence[tuple[float, float, float, float]]) -> Tensor:
    """Masks of the whole image, uint8 (M, height, width), of the ellipses inside boxes."""
    height, width = size
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    masks = [
        ((x - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0)) ** 2 <= 0.25
        for x0, y0, x1, y1 in boxes
    ]
    return torch.stack([*masks, torch.zeros(height, width).bool()])[: len(masks)].to(torch.uint8)


def windows_of(masks: Tensor) -> InstanceMasks:
    """Masks of the whole image cut to windows, with a margin where the image goes on."""
    height, width = masks.shape[1:]
    windows = torch.zeros(len(masks), 4, dtype=torch.int64)
    bitmaps = []
    for index, mask in enumerate(masks):
        rows, columns = torch.where(mask)
        x0, y0 = max(int(columns.min()) - 1, 0), max(int(rows.min()) - 1, 0)
        x1, y1 = min(int(columns.max()) + 2, width), min(int(rows.max()) + 2, height)
        windows[index] = torch.tensor([x0, y0, x1, y1])
        bitmaps.append(mask[y0:y1, x0:x1])
    return InstanceMasks.from_bitmaps(bitmaps, windows)


def scene(
    size: Size, boxes: Sequence[tuple[float, float, float, float]], labels: Sequence[int]
) -> tuple[Targets, dict[str, Tensor]]:
    """Ellipses as our targets, and as torchvision's."""
    masks = ellipses(size, boxes)
    box = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    label = torch.tensor(labels, dtype=torch.int64)
    theirs = {"boxes": box, "labels": label, "masks": masks}
    return Targets(box, label, windows_of(masks)), theirs


def near(targets: Targets, size: Size, count: int, generator: torch.Generator) -> Tensor:
    """Proposals: objects' boxes moved a little, and boxes anywhere in the image."""
    height, width = size
    ends = torch.rand(count, 2, 2, generator=generator) * torch.tensor([width, height])
    anywhere = torch.cat((ends.amin(1), ends.amax(1) + 1), 1)
    moved = targets.boxes.repeat(count // 4, 1)
    moved = moved + 4 * torch.randn(moved.shape, generator=generator)
    limits = torch.tensor([width, height, width, height])
    boxes = torch.minimum(torch.cat((moved, anywhere)).clamp(min=0), limits)
    return boxes[(boxes[:, 2:] - boxes[:, :2]).amin(1) > 1]


def pyramid(
    size: Size, images: int, channels: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Maps of strides 4 to 64; the last is there as from a body, and pooled from by nobody."""
    height, width = size
    maps = {}
    for level in range(5):
        shape = (images, channels, -(-height >> (2 + level)), -(-width >> (2 + level)))
        maps["pool" if level == 4 else str(level)] = torch.randn(shape, generator=generator)
    return maps


def pool(side: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(["0", "1", "2", "3"], side, 2)
