"""Masks on the grid of a region are torchvision's, and cost no mask of the whole image."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from attnorm.detection.batch import InstanceMasks, Targets
from attnorm.detection.mask_targets import mask_targets
from tests.detection.regions import ellipses, near, scene, windows_of

SIZE = (150, 210)
# In the middle, at three borders, a line of one pixel, and the whole image.
BOXES = [
    (30.2, 40.7, 90.9, 100.1),
    (0.0, 10.0, 50.5, 149.9),
    (150.0, 0.0, 210.0, 60.0),
    (100.0, 120.0, 101.0, 150.0),
    (0.0, 0.0, 210.0, 150.0),
]


@pytest.mark.parametrize("size", [28, 7])
def test_equal_torchvisions_of_masks_of_the_whole_image(size: int) -> None:
    targets, theirs = scene(SIZE, BOXES, [1, 2, 3, 4, 1])
    generator = torch.Generator().manual_seed(0)
    rois = near(targets, SIZE, 40, generator)
    matched = torch.randint(0, len(BOXES), (len(rois),), generator=generator)
    matched[: 10 * len(BOXES)] = torch.arange(len(BOXES)).repeat(10)  # as they were moved
    found = mask_targets(targets, matched, rois, size)
    expected = project_masks_on_boxes(theirs["masks"], rois, matched, size)
    assert found.dtype == torch.float32
    assert 0.2 < float(expected.mean()) < 0.8
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_equal_the_mean_of_interpolated_samples() -> None:
    """RoIAlign as its paper has it (He et al., 2017, §3), sample by sample."""
    targets, theirs = scene(SIZE, BOXES[:1], [1])
    roi = (20.3, 35.1, 95.7, 88.8)
    size = 5
    found = mask_targets(targets, torch.tensor([0]), torch.tensor([roi]), size)[0]
    mask = theirs["masks"][0].double()
    x0, y0, x1, y1 = roi
    cell_h, cell_w = (y1 - y0) / size, (x1 - x0) / size
    down, across = math.ceil(cell_h), math.ceil(cell_w)
    for row in range(size):
        for column in range(size):
            total = 0.0
            for i in range(down):
                for j in range(across):
                    y = y0 + cell_h * (row + (i + 0.5) / down)
                    x = x0 + cell_w * (column + (j + 0.5) / across)
                    a, b = math.floor(y), math.floor(x)
                    for r, weight_r in ((a, a + 1 - y), (a + 1, y - a)):
                        for c, weight_c in ((b, b + 1 - x), (b + 1, x - b)):
                            total += weight_r * weight_c * float(mask[r, c])
            assert float(found[row, column]) == pytest.approx(total / (down * across), abs=1e-5)


def test_regions_of_less_than_a_pixel_and_outside_of_the_window_or_the_image() -> None:
    """A region has at least a pixel, the image goes on for one beyond its border, then nothing."""
    targets, theirs = scene(SIZE, BOXES, [1] * 5)
    edge = torch.where(theirs["masks"][0][:, 60])[0].min() - 0.6
    rois = torch.tensor(
        [
            [60.2, 60.4, 60.3, 60.5],
            [60.2, edge, 60.3, edge + 0.1],
            [-3.0, 60.0, 5.0, 90.0],
            [0.0, 0.0, 5.0, 5.0],
            [200.0, 140.0, 210.0, 150.0],
        ]
    )
    matched = torch.tensor([0, 0, 1, 0, 1])
    found = mask_targets(targets, matched, rois)
    expected = project_masks_on_boxes(theirs["masks"], rois, matched, 28)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert float(found[0].min()) == 1.0
    assert float(found[1].max() - found[1].min()) > 0.5
    assert not found[2, :, :4].any()
    assert found[2, 14, 8:].all()
    assert not found[3:].any()


def test_no_region_and_no_object() -> None:
    targets, _ = scene(SIZE, [], [])
    found = mask_targets(targets, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    assert found.shape == (0, 28, 28)


def test_autocast_does_not_round_them() -> None:
    targets, _ = scene(SIZE, BOXES, [1] * 5)
    rois, matched = targets.boxes + 0.3, torch.arange(5)
    exact = mask_targets(targets, matched, rois)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mask_targets(targets, matched, rois), exact)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that anything gave."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_make_no_mask_of_the_whole_image() -> None:
    size = (800, 1333)
    boxes = [(12.0 * i, 7.0 * i, 12.0 * i + 60, 7.0 * i + 50) for i in range(90)]
    masks = ellipses(size, boxes)
    targets = Targets(torch.tensor(boxes), torch.ones(90, dtype=torch.int64), windows_of(masks))
    assert isinstance(targets.masks, InstanceMasks)
    with Largest() as mode:
        mask_targets(targets, torch.arange(90), targets.boxes + 1)
    assert 0 < mode.elements < 800 * 1333 / 2
