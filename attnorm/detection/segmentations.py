"""Polygons and run-length codes of many objects in a few flat arrays."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from attnorm.detection.run_lengths import covers

_SHORTEST_RING = 6  # coordinates of three points; fewer enclose nothing


@dataclass(frozen=True, eq=False)
class Segmentations:
    """M segmentations: of each polygons, or a compressed run-length code, or neither.

    Attributes:
        coordinates: float64, x and y of all points of all polygons.
        ring_ends: int64 (R + 1,); polygon r is ``coordinates[ring_ends[r] : ring_ends[r + 1]]``.
        rings: int64 (M + 1,); object m has polygons ``rings[m]`` to ``rings[m + 1]``.
        codes: all run-length codes.
        code_ends: int64 (M + 1,); that of object m is ``codes[code_ends[m] : code_ends[m + 1]]``.
    """

    coordinates: NDArray[np.float64]
    ring_ends: NDArray[np.int64]
    rings: NDArray[np.int64]
    codes: bytes
    code_ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rings) - 1

    def polygons(self, index: int) -> list[NDArray[np.float64]]:
        """Those of an object, (P, 2) each: x and y in pixels of the image file."""
        ends = self.ring_ends[self.rings[index] : self.rings[index + 1] + 1]
        return [self.coordinates[start:end].reshape(-1, 2) for start, end in pairwise(ends)]

    def code(self, index: int) -> bytes:
        """The run-length code of an object in COCO's compressed form; empty if it has none."""
        return self.codes[self.code_ends[index] : self.code_ends[index + 1]]

    @property
    def present(self) -> NDArray[np.bool_]:
        """(M,), which objects have one."""
        return (np.diff(self.rings) > 0) | (np.diff(self.code_ends) > 0)


class SegmentationsBuilder:
    """Takes segmentations as they stand in a file, one after another."""

    def __init__(self) -> None:
        self._coordinates = array("d")
        self._ring_ends, self._rings, self._code_ends = (array("q", [0]) for _ in range(3))
        self._codes = bytearray()

    def add(self, segmentation: Any, size: Sequence[int]) -> None:
        """One of COCO's forms, or None or an empty one where an object has none.

        Polygons of fewer than three points are left out.

        Args:
            size: height and width of the image.

        Raises:
            ValueError: it is of another form, or of an image of another size.
        """
        if isinstance(segmentation, Mapping):
            self._codes += _compressed(segmentation, list(size))
        elif isinstance(segmentation, list):
            self._add_polygons(segmentation)
        elif segmentation is not None:
            raise ValueError("has a segmentation that is neither polygons nor a run-length code")
        self._rings.append(len(self._ring_ends) - 1)
        self._code_ends.append(len(self._codes))

    def _add_polygons(self, polygons: list[Any]) -> None:
        for ring in polygons:
            try:
                flat = array("d", ring)
            except TypeError:
                raise ValueError("has a polygon that is no list of numbers") from None
            if len(flat) % 2 or not np.isfinite(flat).all():
                raise ValueError(f"has a polygon of {len(flat)} numbers that are not x, y, x, y …")
            if len(flat) >= _SHORTEST_RING:
                self._coordinates.extend(flat)
                self._ring_ends.append(len(self._coordinates))

    def build(self) -> Segmentations:
        return Segmentations(
            np.array(self._coordinates),
            np.array(self._ring_ends),
            np.array(self._rings),
            bytes(self._codes),
            np.array(self._code_ends),
        )


def _compressed(segmentation: Mapping[str, Any], size: list[int]) -> bytes:
    """The counts of a run-length code, lists compressed.

    Raises:
        ValueError: they are not those of an image of ``size``.
    """
    counts, own = segmentation.get("counts"), segmentation.get("size")
    if own != size:
        raise ValueError(f"has a run-length code of size {own!r}, its image is {size}")
    if isinstance(counts, str):
        code = counts.encode(errors="replace")
        if covers(code, (size[0], size[1])):
            return code
    elif isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts):
        whole = {"size": size, "counts": counts}
        compressed: bytes = coco_mask.frPyObjects(whole, *size)["counts"]
        if covers(compressed, (size[0], size[1])):
            return compressed
    raise ValueError(f"has a run-length code that is not one of {size[0]} × {size[1]} pixels")
