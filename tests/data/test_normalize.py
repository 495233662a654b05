"""uint8 pixels to normalized images, and the memory that they live in."""

from __future__ import annotations

import pytest
import torch

from attnorm.data.normalize import PixelNormalization
from tests.data.conftest import CPU

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _normalization(
    dtype: torch.dtype = torch.float32, channels_last: bool = True
) -> PixelNormalization:
    return PixelNormalization(MEAN, STD, device=CPU, dtype=dtype, channels_last=channels_last)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
def test_every_channel_has_its_own_mean_and_deviation(
    dtype: torch.dtype, tolerance: float, channels_last: bool
) -> None:
    pixels = torch.arange(5 * 6 * 6 * 3, dtype=torch.uint8).view(5, 6, 6, 3)
    images = _normalization(dtype, channels_last)(pixels)
    mean, std = (torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (MEAN, STD))
    wanted = (pixels.permute(0, 3, 1, 2).double() / 255 - mean) / std
    assert images.dtype == dtype
    torch.testing.assert_close(images.double(), wanted, rtol=tolerance, atol=tolerance)
    assert images.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def test_a_batch_that_is_held_is_not_written_over_by_later_ones() -> None:
    normalize = _normalization()
    pixels = torch.randint(0, 256, (4, 6, 6, 3), dtype=torch.uint8)
    first = normalize(pixels)
    kept, place = first.clone(), first.data_ptr()
    assert normalize(255 - pixels).data_ptr() != place
    assert torch.equal(first, kept)
    view = first[2:, :, 1]
    del first
    assert normalize(255 - pixels).data_ptr() != place, "a part of it is still held"
    assert torch.equal(view, kept[2:, :, 1])
    del view
    assert place in {normalize(pixels).data_ptr() for _ in range(3)}
    assert normalize(pixels[:2]).shape == (2, 3, 6, 6), "a batch of another size finds room too"
