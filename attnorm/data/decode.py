"""One encoded image to a uint8 RGB crop, with torchvision: what the torch loader's workers do."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_image

from attnorm.data.sampling import RandomCrop, centre, resized_shape

_TORCHVISION_FORMATS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")  # JPEG, PNG, WebP


class BrokenImageError(Exception):
    """These bytes are not an image that can be decoded."""


def decode_rgb(encoded: NDArray[np.uint8]) -> Tensor:
    """An encoded image as uint8 (3, H, W), whatever its colour model; EXIF rotation is ignored.

    Raises:
        BrokenImageError: empty, truncated or not an image.
    """
    if not encoded.size:
        raise BrokenImageError("the file is empty")
    try:
        if encoded[:4].tobytes().startswith(_TORCHVISION_FORMATS):
            image: Tensor = decode_image(torch.from_numpy(encoded), mode=ImageReadMode.RGB)
        else:
            pillow = Image.open(io.BytesIO(encoded.tobytes())).convert("RGB")
            image = torch.from_numpy(np.array(pillow)).permute(2, 0, 1)
    except UnidentifiedImageError as error:
        raise BrokenImageError("not an image of a known format") from error
    except (RuntimeError, OSError, SyntaxError, ValueError) as error:
        raise BrokenImageError("truncated or damaged") from error
    # PNG has 16 bits a channel as well.
    return image if image.dtype == torch.uint8 else (image.int() // 257).byte()


@dataclass(frozen=True)
class Transform:
    """Training crop and flip, or the central crop of an evaluation (``crop`` is None).

    Pixels stay uint8: resizing them is several times as fast as resizing floats, and they are a
    quarter of the memory on their way to the device.
    """

    image_size: int
    resize_size: int
    crop: RandomCrop | None

    def random(self, image: Tensor, candidates: NDArray[np.float64], mirror: bool) -> Tensor:
        """What :meth:`RandomCrop.draw` drew for this image (3, H, W)."""
        assert self.crop is not None
        top, left, height, width = self.crop.box(candidates, *image.shape[-2:])
        square = self.resize(image[:, top : top + height, left : left + width])
        return square.flip(-1) if mirror else square

    def resize(self, crop: Tensor) -> Tensor:
        """A crop (3, H, W) stretched to (3, image_size, image_size)."""
        size = [self.image_size, self.image_size]
        return interpolate(crop[None], size, mode="bilinear", antialias=True)[0]

    def centre(self, image: Tensor) -> Tensor:
        """The central square of the image (3, H, W), its short side at ``resize_size`` first."""
        shape = resized_shape(image.shape[-2], image.shape[-1], self.resize_size)
        top, left = centre(shape, self.image_size)
        image = interpolate(image[None], shape, mode="bilinear", antialias=True)[0]
        return image[:, top : top + self.image_size, left : left + self.image_size]
