"""Masks in the network's input: where they should be, in windows no larger than they must be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch.nn.functional import interpolate

from attnorm.detection.batch import InstanceMasks
from attnorm.detection.masks import (
    IGNORED,
    instance_masks,
    semantic_from_map,
    semantic_things,
)
from attnorm.detection.segmentations import Segmentations, SegmentationsBuilder
from attnorm.detection.transform import Geometry
from tests.detection.coco_files import compressed, ellipse, uncompressed

SIZE = (40, 60)


def packed(size: tuple[int, int], *segmentations: Any) -> Segmentations:
    builder = SegmentationsBuilder()
    for segmentation in segmentations:
        builder.add(segmentation, list(size))
    return builder.build()


def whole(masks: InstanceMasks, size: tuple[int, int]) -> NDArray[np.uint8]:
    """All masks in images of their own, (M, height, width)."""
    full = np.zeros((len(masks), *size), dtype=np.uint8)
    for image, bitmap, window in zip(full, masks.bitmaps(), masks.windows.tolist(), strict=True):
        x0, y0, x1, y1 = window
        image[y0:y1, x0:x1] = bitmap.numpy()
    return full


def drawn(rings: Sequence[Sequence[float]], size: tuple[int, int]) -> NDArray[np.uint8]:
    """By pycocotools in the whole image."""
    codes = [coco_mask.frPyObjects([list(ring)], *size)[0] for ring in rings]
    mask: NDArray[np.uint8] = coco_mask.decode(coco_mask.merge(codes))
    return mask


def blob(random: np.random.Generator, size: tuple[int, int]) -> list[float]:
    """A polygon of some points, which may leave the image."""
    points = int(random.integers(3, 9))
    angles = np.sort(random.uniform(0, 2 * np.pi, points))
    centre = random.uniform((0, 0), (size[1], size[0]))
    radius = random.uniform(1, 0.6 * min(size), (points, 1))
    ring = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    flat: list[float] = np.clip(ring, 0, None).ravel().tolist()
    return flat


def assert_margins(masks: InstanceMasks, size: tuple[int, int]) -> None:
    """An empty row or column at every side of a window that is not a side of the image."""
    for bitmap, (x0, y0, x1, y1) in zip(masks.bitmaps(), masks.windows.tolist(), strict=True):
        assert 0 <= x0 < x1 <= size[1]
        assert 0 <= y0 < y1 <= size[0]
        for edge, inside in (
            (bitmap[0], y0 > 0),
            (bitmap[-1], y1 < size[0]),
            (bitmap[:, 0], x0 > 0),
            (bitmap[:, -1], x1 < size[1]),
        ):
            assert not (inside and edge.any())


@pytest.mark.parametrize("scale", [1.0, 2.6, 0.7])
def test_polygons_are_what_pycocotools_draws_at_the_size_of_the_input(scale: float) -> None:
    random = np.random.default_rng(0)
    size = round(SIZE[0] * scale), round(SIZE[1] * scale)
    geometry = Geometry(SIZE, size)
    across, down = geometry.scale
    polygons = [[blob(random, SIZE) for _ in range(random.integers(1, 4))] for _ in range(60)]
    masks = instance_masks(packed(SIZE, *polygons), range(60), geometry)
    assert_margins(masks, size)
    factors = np.array([across, down])
    for rings, mask in zip(polygons, whole(masks, size), strict=True):
        scaled = [(np.reshape(ring, (-1, 2)) * factors).ravel().tolist() for ring in rings]
        expected = drawn(scaled, size)
        # Coordinates that are moved by whole pixels first can be rounded the other way.
        assert (mask != expected).sum() <= 2
        assert mask.sum() > 0 or expected.sum() == 0


def test_a_window_is_no_larger_than_its_object_needs() -> None:
    masks = instance_masks(
        packed(SIZE, [[10, 12, 20, 12, 20, 18, 10, 18]], compressed(ellipse(SIZE, 30, 20, 5, 3))),
        [0, 1],
        Geometry(SIZE, SIZE),
    )
    assert masks.windows.tolist() == [[9, 11, 21, 19], [24, 16, 36, 24]]
    assert masks.bitmaps()[0].sum() == 60


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [SIZE, (100, 150), (27, 41)])
@pytest.mark.parametrize("code", [compressed, uncompressed])
def test_run_lengths_are_resized_to_the_nearest_pixel(
    flip: bool, size: tuple[int, int], code: Any
) -> None:
    random = np.random.default_rng(1)
    originals = [
        ellipse(SIZE, *random.uniform(0, 60, 2), *random.uniform(2, 25, 2)) for _ in range(20)
    ]
    originals += [np.ones(SIZE, np.uint8), np.zeros(SIZE, np.uint8)]
    masks = instance_masks(
        packed(SIZE, *map(code, originals)), range(22), Geometry(SIZE, size, flip)
    )
    assert_margins(masks, size)
    planes = torch.from_numpy(np.stack(originals))[:, None]
    planes = planes.flip(3) if flip else planes
    expected = interpolate(planes, size, mode="nearest-exact" if size == SIZE else "nearest")
    if flip and size != SIZE:  # the nearest pixel is counted from the file's left side
        columns = SIZE[1] - 1 - np.arange(size[1]) * SIZE[1] // size[1]
        rows = np.arange(size[0]) * SIZE[0] // size[0]
        expected = torch.from_numpy(np.stack(originals)[:, rows][:, :, columns])[:, None]
    assert np.array_equal(whole(masks, size), expected[:, 0].numpy())


def test_a_mirrored_polygon_is_the_mirror_of_its_mask() -> None:
    ring = [10.0, 12.0, 20.0, 12.0, 26.0, 30.0, 10.0, 18.0]
    segmentations = packed(SIZE, [ring])
    straight, mirrored = (
        whole(instance_masks(segmentations, [0], Geometry(SIZE, (80, 120), flip)), (80, 120))
        for flip in (False, True)
    )
    # pycocotools' outlines lean by less than a pixel to one side.
    outline = (straight[:, :, ::-1] != mirrored).sum()
    assert outline <= 0.03 * straight.sum()
    assert mirrored[0, :, 60:].sum() > 0.99 * mirrored.sum()


def test_an_object_without_a_mask_has_an_empty_one() -> None:
    masks = instance_masks(packed(SIZE, None, []), [0, 1], Geometry(SIZE, SIZE))
    assert len(masks) == 2
    assert masks.pixels.sum() == 0


def test_no_objects_are_no_masks() -> None:
    masks = instance_masks(packed(SIZE), [], Geometry(SIZE, SIZE))
    assert (masks.pixels.shape, masks.windows.shape) == ((0,), (0, 4))


def test_things_are_painted_small_ones_last_and_crowds_are_ignored() -> None:
    size = (83, 122)  # no multiple of 8
    large, small = ellipse(size, 60, 40, 50, 35), ellipse(size, 70, 40, 14, 18)
    crowd = ellipse(size, 20, 70, 30, 30)
    geometry = Geometry(size, size)
    segmentations = packed(size, compressed(small), compressed(large), compressed(crowd))
    semantic = semantic_things(
        instance_masks(segmentations, [0, 1], geometry),
        [7, 2],
        instance_masks(segmentations, [2], geometry),
        size,
    )
    full = np.zeros(size, dtype=np.uint8)
    full[crowd > 0] = IGNORED
    full[large > 0] = 2
    full[small > 0] = 7
    assert np.array_equal(semantic, full[::8, ::8])
    assert set(np.unique(semantic)) == {0, 2, 7, IGNORED}


def test_a_semantic_map_moves_with_its_image() -> None:
    labels = np.random.default_rng(0).integers(0, 180, SIZE, dtype=np.uint8)
    size = (100, 150)
    plane = torch.from_numpy(labels)[None, None]
    expected = interpolate(plane, size, mode="nearest")[0, 0, ::8, ::8].numpy()
    assert np.array_equal(semantic_from_map(labels, Geometry(SIZE, size)), expected)
    columns = SIZE[1] - 1 - np.arange(0, size[1], 8) * SIZE[1] // size[1]
    mirrored = labels[np.arange(0, size[0], 8) * SIZE[0] // size[0]][:, columns]
    assert np.array_equal(semantic_from_map(labels, Geometry(SIZE, size, True)), mirrored)
