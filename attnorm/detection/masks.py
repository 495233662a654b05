"""Segmentations of objects as bitmaps in the network's input, each no larger than its object."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from attnorm.detection.batch import InstanceMasks, Size
from attnorm.detection.segmentations import Segmentations
from attnorm.detection.transform import Geometry

IGNORED = 255  # label of pixels of a semantic map that say nothing
SEMANTIC_STRIDE = 8

Window = tuple[int, int, int, int]  # x0, y0, x1, y1
Bitmap = NDArray[np.uint8]


def instance_masks(
    segmentations: Segmentations, objects: Sequence[int], geometry: Geometry
) -> InstanceMasks:
    """The masks of some objects of one image."""
    found = [object_mask(segmentations, index, geometry) for index in objects]
    windows = torch.tensor([window for _, window in found], dtype=torch.int64).view(-1, 4)
    pixels = [np.zeros(0, dtype=np.uint8), *(bitmap.reshape(-1) for bitmap, _ in found)]
    return InstanceMasks(torch.from_numpy(np.concatenate(pixels)), windows)


def object_mask(
    segmentations: Segmentations, index: int, geometry: Geometry
) -> tuple[Bitmap, Window]:
    """A bitmap of 0 and 1 and its window, with the margin that InstanceMasks asks for.

    Polygons are drawn at the size of the input, as exactly as they are; run-length codes are
    resized to the nearest pixel. An object without either has an empty mask.
    """
    polygons = segmentations.polygons(index)
    if polygons:
        return _drawn([geometry.points(ring) for ring in polygons], geometry.size)
    code = segmentations.code(index)
    return _resampled(code, geometry) if code else (np.zeros((1, 1), np.uint8), (0, 0, 1, 1))


def _drawn(rings: list[NDArray[np.float64]], size: Size) -> tuple[Bitmap, Window]:
    points = np.concatenate(rings)
    window = _window(np.concatenate((points.min(axis=0), points.max(axis=0))), size)
    x0, y0, x1, y1 = window
    height, width = y1 - y0, x1 - x0
    # One by one: pycocotools takes a list of polygons for one of boxes if its first has two points.
    codes = [
        coco_mask.frPyObjects([(ring - (x0, y0)).ravel().tolist()], height, width)[0]
        for ring in rings
    ]
    bitmap = coco_mask.decode(coco_mask.merge(codes) if len(codes) > 1 else codes[0])
    return np.ascontiguousarray(bitmap), window


def _resampled(code: bytes, geometry: Geometry) -> tuple[Bitmap, Window]:
    stored = {"size": list(geometry.original), "counts": code}
    x, y, width, height = coco_mask.toBbox(stored)
    corners = geometry.boxes(np.array([[x, y, x + width, y + height]]))[0]
    window = _window(corners, geometry.size)
    x0, y0, x1, y1 = window
    rows, columns = geometry.sources(np.arange(y0, y1), np.arange(x0, x1))
    return coco_mask.decode(stored)[np.ix_(rows, columns)], window


def _window(corners: NDArray[np.float64], size: Size) -> Window:
    """The pixels that something may touch between x0, y0, x1, y1, and one more around them.

    pycocotools and the nearest pixel never leave the pixels that a shape has a part of.
    """
    height, width = size
    left, top, right, bottom = corners.tolist()
    x0 = min(max(math.floor(left) - 1, 0), width - 1)
    y0 = min(max(math.floor(top) - 1, 0), height - 1)
    x1 = max(min(math.ceil(right) + 1, width), x0 + 1)
    y1 = max(min(math.ceil(bottom) + 1, height), y0 + 1)
    return x0, y0, x1, y1


def semantic_things(
    masks: InstanceMasks, labels: Sequence[int], crowds: InstanceMasks, size: Size
) -> Bitmap:
    """A semantic map made of instances: labels on a background of 0, small ones on top.

    Args:
        labels: of ``masks``, from 1 on.
        crowds: what is neither one instance nor background; ignored where nothing is on top.
        size: of the network's input.

    Returns:
        uint8 (h / 8, w / 8), rounded up: every eighth pixel of every eighth row.
    """
    semantic = np.zeros(semantic_size(size), dtype=np.uint8)
    layers = [(bitmap.numpy(), window, IGNORED) for bitmap, window in _parts(crowds)]
    things = [
        (bitmap.numpy(), window, label)
        for (bitmap, window), label in zip(_parts(masks), labels, strict=True)
    ]
    layers += sorted(things, key=lambda layer: -int(layer[0].sum()))
    for bitmap, (x0, y0, _, _), label in layers:
        row, column = -y0 % SEMANTIC_STRIDE, -x0 % SEMANTIC_STRIDE
        seen = bitmap[row::SEMANTIC_STRIDE, column::SEMANTIC_STRIDE]
        top, left = (y0 + row) // SEMANTIC_STRIDE, (x0 + column) // SEMANTIC_STRIDE
        below = semantic[top : top + seen.shape[0], left : left + seen.shape[1]]
        below[seen > 0] = label
    return semantic


def semantic_from_map(labels: Bitmap, geometry: Geometry) -> Bitmap:
    """A map of an image file, uint8 (H, W), likewise."""
    height, width = semantic_size(geometry.size)
    rows, columns = geometry.sources(
        np.arange(height) * SEMANTIC_STRIDE, np.arange(width) * SEMANTIC_STRIDE
    )
    return labels[np.ix_(rows, columns)]


def semantic_size(size: Size) -> Size:
    """Of the semantic map of an input."""
    return -(-size[0] // SEMANTIC_STRIDE), -(-size[1] // SEMANTIC_STRIDE)


def _parts(masks: InstanceMasks) -> list[tuple[torch.Tensor, list[int]]]:
    return list(zip(masks.bitmaps(), masks.windows.tolist(), strict=True))
