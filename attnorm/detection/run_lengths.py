"""Masks in COCO's compressed run-length code, without the mask of the whole image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from attnorm.detection.batch import Size


def encode_window(bitmap: NDArray[Any], corner: tuple[int, int], size: Size) -> bytes:
    """COCO's compressed run-length code of a mask that is zero outside a window.

    Equal to that of the whole mask, which is not built: COCO counts down the columns, so what
    starts and ends in the window's columns starts and ends in those of the image.

    Args:
        bitmap: (height, width), zero or not, wholly inside the image.
        corner: x and y of its upper left pixel.
        size: of the image.
    """
    height, (x, y) = size[0], corner
    if bitmap.shape[0] < height:  # whatever reaches the window's last row ends there
        bitmap = np.pad(bitmap, ((0, 1), (0, 0)))
    pixels = np.pad((bitmap.T != 0).ravel(), 1)
    column, row = np.divmod(np.flatnonzero(pixels[1:] != pixels[:-1]), bitmap.shape[0] or 1)
    changes = (column + x) * height + row + y
    total = size[0] * size[1]
    counts = np.diff(changes[changes < total], prepend=0, append=total)
    code: bytes = coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"]
    return code


def covers(code: bytes, size: Size) -> bool:
    """Whether a compressed run-length code is one of that many pixels.

    pycocotools would read on, past the end of a damaged one. A number is written in characters of
    five bits, low ones first; a sixth bit says that there are more, the highest of the last is the
    sign. From the fourth number on it is the difference to the last but one.
    """
    characters = np.frombuffer(code, dtype=np.uint8).astype(np.int64) - ord("0")
    if not len(characters) or characters.min() < 0 or characters.max() > 63:
        return False
    last = characters & 32 == 0
    if not last[-1]:
        return False
    starts = np.flatnonzero(np.concatenate(([True], last[:-1])))
    lengths = np.diff(starts, append=len(characters))
    if lengths.max() > 6:  # 30 bits: more pixels than any image has
        return False
    shifts = 5 * (np.arange(len(characters)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((characters & 31) << shifts, starts)
    numbers -= (characters[last] & 16 != 0).astype(np.int64) << (5 * lengths)
    runs = np.concatenate((numbers[:1], numbers[1::2].cumsum(), numbers[2::2].cumsum()))
    return bool((runs >= 0).all() and runs.sum() == size[0] * size[1])
