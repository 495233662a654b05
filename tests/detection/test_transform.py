"""Images, boxes and padding as torchvision's detectors make them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from attnorm.detection.transform import Geometry, PaddedNormalization, padded, resized_size

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def torchvision(short: int = 800, longest: int = 1333) -> Any:
    return GeneralizedRCNNTransform(short, longest, list(MEAN), list(STD)).eval()


def normalization(**values: Any) -> PaddedNormalization:
    target = {
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "memory_format": torch.channels_last,
        **values,
    }
    return PaddedNormalization(MEAN, STD, 32, **target)


def picture(height: int, width: int) -> torch.Tensor:
    coarse = np.random.default_rng(height).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    resized = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized))


def test_sizes_are_rounded_as_in_torchvision() -> None:
    assert resized_size((480, 640), 800, 1333) == (800, 1066)
    random = np.random.default_rng(0)
    for height, width in random.integers(20, 700, (300, 2)).tolist():
        for short, longest in ((800, 1333), (64, 100)):
            tiny = torch.zeros(3, 1, 1).expand(3, height, width)
            scale = min(short / min(height, width), longest / max(height, width))
            expected = torch.nn.functional.interpolate(
                tiny[None, :1], scale_factor=scale, mode="nearest", recompute_scale_factor=True
            )
            assert resized_size((height, width), short, longest) == tuple(expected.shape[2:])


def test_no_side_vanishes() -> None:
    assert resized_size((1, 5_000), 800, 1333) == (1, 1333)


@pytest.mark.parametrize("sizes", [[(48, 64), (64, 48)], [(100, 90), (55, 81), (20, 33)]])
def test_a_batch_is_that_of_torchvision(sizes: list[tuple[int, int]]) -> None:
    images = [picture(*size) for size in sizes]
    random = np.random.default_rng(1)
    boxes = [np.sort(random.uniform(0, 20, (3, 2, 2)), axis=1).reshape(3, 4) for _ in sizes]
    targets = [{"boxes": torch.from_numpy(box).float()} for box in boxes]
    tensors = [image.permute(2, 0, 1) / 255 for image in images]
    expected, expected_targets = torchvision(64, 100)(tensors, targets)

    geometries = [Geometry(size, resized_size(size, 64, 100)) for size in sizes]
    pixels = [g.pixels(image) for g, image in zip(geometries, images, strict=True)]
    batch = normalization()(
        torch.cat([image.reshape(-1) for image in pixels]), [g.size for g in geometries]
    )
    assert [geometry.size for geometry in geometries] == expected.image_sizes
    assert batch.shape == expected.tensors.shape
    levels = (batch - expected.tensors).abs() * torch.tensor(STD).view(3, 1, 1) * 255
    assert levels.max() <= 1.01, "pixels are rounded to one of 256 after resizing"
    assert torch.equal(batch == 0, expected.tensors == 0), "zeros are the padding"
    for geometry, box, target in zip(geometries, boxes, expected_targets, strict=True):
        ours = torch.from_numpy(geometry.boxes(box)).float()
        torch.testing.assert_close(ours, target["boxes"])


def test_a_mirrored_image_has_mirrored_boxes_and_points() -> None:
    image = torch.zeros(40, 60, 3, dtype=torch.uint8)
    image[10:20, 5:15] = 255
    geometry = Geometry((40, 60), (80, 120), flip=True)
    rows, columns = np.nonzero(geometry.pixels(image)[..., 0].numpy() > 127)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    box = np.array([[5.0, 10.0, 15.0, 20.0]])
    assert geometry.boxes(box).tolist() == [found] == [[90, 20, 110, 40]]
    assert box.tolist() == [[5, 10, 15, 20]], "the data set's own are left alone"
    corners = geometry.points(np.array([[5.0, 10.0], [15.0, 20.0]]))
    assert corners.tolist() == [[110, 20], [90, 40]]
    down, across = geometry.sources(np.array([20, 39]), np.array([90, 109]))
    assert (down.tolist(), across.tolist()) == ([10, 19], [14, 5])


def test_an_image_of_the_right_size_is_left_as_it_is() -> None:
    image = picture(40, 60)
    assert torch.equal(Geometry((40, 60), (40, 60)).pixels(image), image)
    assert torch.equal(Geometry((40, 60), (40, 60), True).pixels(image), image.flip(1))


def test_padding_holds_all_images() -> None:
    assert padded([(800, 1066), (799, 1067)], 32) == (800, 1088)
    assert padded([(33, 32)], 32) == (64, 32)
    assert padded([(33, 32)], 1) == (33, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_images_come_in_the_wanted_form(
    dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    normalize = normalization(dtype=dtype, memory_format=memory_format)
    wide, high = picture(20, 90), picture(70, 20)  # wider ones first, then narrower, then wider
    for image in (high, wide, high):
        batch = normalize(image.reshape(-1), [tuple(image.shape[:2])])
        assert batch.dtype == dtype
        assert batch.is_contiguous(memory_format=memory_format)
        expected = (image.permute(2, 0, 1) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
            STD
        ).view(3, 1, 1)
        own = batch[0, :, : image.shape[0], : image.shape[1]].float()
        torch.testing.assert_close(own, expected, atol=0.01, rtol=0.01)
        assert batch.count_nonzero() == own.count_nonzero()


def test_both_ways_to_normalize_agree() -> None:
    normalize = normalization()
    image = picture(30, 50).reshape(30, 150)
    normalize(image.reshape(-1), [(30, 50)])
    results = torch.empty(2, 32, 192)[:, :30, :150]  # inside their padding
    normalize._write(image, results[0])
    normalize._write_on_cpu(image, results[1])
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-6)
