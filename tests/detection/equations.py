"""The papers' equations one after another: loops, float64, nothing of the package.

Boxes are tuples x0, y0, x1, y1; features are maps (C, H, W) of one image, strides 4 to 32; heads
are given as functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Box = tuple[float, float, float, float]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def encode(region: Box, box: Box, stds: tuple[float, float]) -> list[float]:
    """R-CNN's parametrization (Girshick et al., 2014, appendix C), in standard deviations."""
    w, h = region[2] - region[0], region[3] - region[1]
    x, y = (region[0] + region[2]) / 2, (region[1] + region[3]) / 2
    width, height = box[2] - box[0], box[3] - box[1]
    return [
        ((box[0] + box[2]) / 2 - x) / w / stds[0],
        ((box[1] + box[3]) / 2 - y) / h / stds[0],
        math.log(width / w) / stds[1],
        math.log(height / h) / stds[1],
    ]


def decode(region: Box, offsets: Sequence[float], stds: tuple[float, float]) -> Box:
    """The inverse; no side grows by more than a factor of 62.5."""
    w, h = region[2] - region[0], region[3] - region[1]
    x = (region[0] + region[2]) / 2 + offsets[0] * stds[0] * w
    y = (region[1] + region[3]) / 2 + offsets[1] * stds[0] * h
    w *= math.exp(min(offsets[2] * stds[1], math.log(62.5)))
    h *= math.exp(min(offsets[3] * stds[1], math.log(62.5)))
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def clip(box: Box, size: tuple[int, int]) -> Box:
    height, width = size
    x0, x1 = (min(max(x, 0.0), float(width)) for x in (box[0], box[2]))
    y0, y1 = (min(max(y, 0.0), float(height)) for y in (box[1], box[3]))
    return x0, y0, x1, y1


def taps(at: float, length: int) -> list[tuple[int, float]]:
    """The two pixels of a line that a sample lies between, and their weights."""
    if at < -1 or at > length:
        return []
    at = min(max(at, 0.0), length - 1.0)
    low = math.floor(at)
    return [(low, low + 1 - at), (min(low + 1, length - 1), at - low)]


def cell_means(start: float, side: float, cells: int, samples: int | None, length: int) -> Tensor:
    """Weights of the pixels of a line in each of its cells: (cells, length)."""
    count = samples or math.ceil(side)
    weights = torch.zeros(cells, length, dtype=torch.float64)
    for cell in range(cells):
        for number in range(count):
            for pixel, weight in taps(start + (cell + (number + 0.5) / count) * side, length):
                weights[cell, pixel] += weight / count
    return weights


def roi_align(features: Tensor, box: Box, stride: int, cells: int, samples: int | None) -> Tensor:
    """Means of bilinear samples in each cell (He et al., 2017, §3): (C, cells, cells).

    ``samples`` in a cell and direction; None for as many as the cell has pixels, rounded up.
    """
    _, height, width = features.shape
    x0, y0, x1, y1 = (value / stride for value in box)
    down = cell_means(y0, max(y1 - y0, 1.0) / cells, cells, samples, height)
    across = cell_means(x0, max(x1 - x0, 1.0) / cells, cells, samples, width)
    return torch.einsum("rh,chw,kw->crk", down, features, across)


def pyramid_roi_align(maps: Sequence[Tensor], box: Box, cells: int) -> Tensor:
    """From the level that the box's area asks for (Lin et al., 2017, equation 1)."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    level = math.floor(4 + math.log2(math.sqrt(area) / 224 + 1e-6))
    level = min(max(level, 2), 1 + len(maps))
    return roi_align(maps[level - 2], box, 2**level, cells, 2)


def cross_entropy(logits: Tensor, label: int) -> Tensor:
    return logits.exp().sum().log() - logits[label]


def total(values: Sequence[Tensor]) -> Tensor:
    result = torch.zeros((), dtype=torch.float64)
    for value in values:
        result = result + value
    return result


def smooth_l1(given: Tensor, wanted: Sequence[float], beta: float) -> Tensor:
    terms = []
    for a, b in zip(given, wanted, strict=True):
        d = (a - b).abs()
        terms.append(d * d / (2 * beta) if float(d) < beta else d - beta / 2)
    return total(terms)


def binary_cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    p = 1 / (1 + (-logits).exp())
    return -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean()


class Image:
    """One image: its maps, size, and the objects in it (box, label, mask of the whole image)."""

    def __init__(
        self,
        maps: Sequence[Tensor],
        size: tuple[int, int],
        boxes: Sequence[Box] = (),
        labels: Sequence[int] = (),
        masks: Tensor | None = None,
    ) -> None:
        self.maps, self.size = list(maps), size
        self.boxes, self.labels, self.masks = list(boxes), list(labels), masks

    def assign(self, box: Box, threshold: float) -> tuple[int, int]:
        """Label and object of a box: of the object that it overlaps most, if by that much."""
        overlaps = [overlap(box, own) for own in self.boxes]
        if not overlaps or max(overlaps) < threshold:
            return 0, -1
        best = overlaps.index(max(overlaps))
        return self.labels[best], best

    def mask(self, index: int, box: Box, cells: int) -> Tensor:
        assert self.masks is not None
        return roi_align(self.masks[index][None].double(), box, 1, cells, None)[0]


Head = Callable[[Tensor], Tensor]
BoxHead = Callable[[Tensor], tuple[Tensor, Tensor]]


def suppressed(
    candidates: list[tuple[float, int, Box]], threshold: float, limit: int
) -> list[tuple[float, int, Box]]:
    """Score, label and box, best first, without those that a better one of the class overlaps."""
    kept: list[tuple[float, int, Box]] = []
    for candidate in sorted(candidates, key=lambda c: -c[0]):
        score, label, box = candidate
        rivals = [other for _, same, other in kept if same == label]
        if all(overlap(box, other) <= threshold for other in rivals):
            kept.append((score, label, box))
    return kept[:limit]
