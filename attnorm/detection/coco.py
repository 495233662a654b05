"""A data set in COCO's format (Lin et al., 2014) as flat arrays, which worker processes share.

Lists of dictionaries would be copied page by page into every worker as reference counts change.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnorm.config import CocoConfig
from attnorm.data.source import printable
from attnorm.detection.scenes import scenes_root
from attnorm.detection.segmentations import Segmentations, SegmentationsBuilder
from attnorm.errors import UserError

MIN_BOX_SIDE = 1.0  # pixels of the image file; smaller boxes are not trained on, as in mmdetection


@dataclass(frozen=True, eq=False)
class CocoData:
    """I images and their M annotations of C categories.

    Attributes:
        images_dir: the folder of the image files.
        annotations: the file that everything was read from.
        key: the config's name of that file, for messages.
        image_ids: int64 (I,), ascending.
        sizes: int64 (I, 2), height and width in pixels.
        names: of the image files, one after another; ``name_ends`` (I,) says where each ends.
        category_ids: int64 (C,), ascending; label l is that of ``category_ids[l - 1]``.
        category_names: C of them.
        offsets: int64 (I + 1,); image i has annotations ``offsets[i]`` to ``offsets[i + 1]``.
        annotation_ids: int64 (M,).
        boxes: float64 (M, 4): x0, y0, x1, y1 in pixels of the image file, as annotated.
        labels: int64 (M,), 1 to C.
        areas: float64 (M,), as annotated; of the box where the file gives none.
        crowd: bool (M,).
        segmentations: M of them.
    """

    images_dir: Path
    annotations: Path
    key: str
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    names: bytes
    name_ends: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    category_names: tuple[str, ...]
    offsets: NDArray[np.int64]
    annotation_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    segmentations: Segmentations

    def __len__(self) -> int:
        return len(self.image_ids)

    def name(self, index: int) -> str:
        """The file name of image ``index``, relative to ``images_dir``."""
        start = self.name_ends[index - 1] if index else 0
        return os.fsdecode(self.names[start : self.name_ends[index]])

    def path(self, index: int) -> Path:
        """The file of image ``index``."""
        return self.images_dir / self.name(index)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of image ``index``, as the annotations have them."""
        height, width = self.sizes[index].tolist()
        return height, width

    def fingerprint(self) -> dict[str, Any]:
        """Counts, and 16 digits of the SHA-256 of names, sizes, boxes and classes."""
        digest = hashlib.sha256(self.names)
        for values in (self.name_ends, self.sizes, self.offsets, self.boxes, self.labels):
            digest.update(np.ascontiguousarray(values).tobytes())
        count = {"images": len(self), "objects": len(self.labels)}
        return {**count, "sha256": digest.hexdigest()[:16]}

    @property
    def image_of(self) -> NDArray[np.int64]:
        """(M,), the image of every annotation."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def has_objects(self, image_id: int) -> bool:
        """Whether an image holds something to find; crowds do not count."""
        index = int(np.searchsorted(self.image_ids, image_id))
        return not self.crowd[self.offsets[index] : self.offsets[index + 1]].all()


@dataclass(frozen=True, eq=False)
class TrainingView:
    """The J images of a data set that are trained on, and their K objects.

    Attributes:
        images: int64 (J,), their indices in ``data``.
        offsets: int64 (J + 1,); image ``images[j]`` has objects ``offsets[j]`` to
            ``offsets[j + 1]``.
        objects: int64 (K,), their indices among the annotations of ``data``.
        boxes: float64 (K, 4), inside the image.
    """

    data: CocoData
    images: NDArray[np.int64]
    offsets: NDArray[np.int64]
    objects: NDArray[np.int64]
    boxes: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.images)


def training_view(data: CocoData, min_side: int = 32) -> TrainingView:
    """What there is to learn from: no crowds, and no boxes that are hardly there.

    Boxes are clipped to their image; those without area, or less than a pixel wide or high, are
    left out, as mmdetection does. So are images without any other, or of a side below ``min_side``.
    """
    image_of = data.image_of
    limits = data.sizes[image_of][:, [1, 0, 1, 0]].astype(np.float64)
    boxes = np.minimum(np.maximum(data.boxes, 0), limits)
    large = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_BOX_SIDE).all(axis=1) & (data.areas > 0)
    wide = data.sizes.min(axis=1) >= min_side
    objects = np.flatnonzero(large & ~data.crowd & wide[image_of])
    images, counts = np.unique(image_of[objects], return_counts=True)
    offsets = np.concatenate(([0], counts.cumsum()))
    return TrainingView(data, images, offsets, objects, boxes[objects])


def read_split(config: CocoConfig, training: bool) -> CocoData:
    """One half of the data set of a config.

    Raises:
        UserError: it cannot be had.
    """
    if config.source == "digit_scenes":
        root = scenes_root(config)
    elif config.root is None:
        raise UserError(
            f"data={config.name} needs data.root=FOLDER, which holds {config.train_images}/,"
            f" {config.val_images}/ and annotations/."
        )
    else:
        root = Path(config.root).expanduser().absolute()
        if not root.is_dir():
            raise UserError(f"data.root={root} is not a folder: give the one with the images.")
    split = "train" if training else "val"
    images = root / (config.train_images if training else config.val_images)
    annotations = root / (config.train_annotations if training else config.val_annotations)
    return read_coco(images, annotations, f"data.{split}_annotations")


def read_coco(images_dir: Path, annotations: Path, key: str) -> CocoData:
    """A file of COCO instances.

    Args:
        images_dir: where its images are; they are not looked at.
        key: what a config calls the file.

    Raises:
        UserError: no such file, or one that does not say what a data set needs to.
    """
    try:
        state = annotations.stat()
        return _read_once(images_dir, annotations, key, (state.st_mtime_ns, state.st_size))
    except OSError as error:
        raise UserError(
            f"{printable(f'{key}={annotations}')} cannot be read ({error.strerror}): give data.root"
            f" and {key} so that they lead to a file of COCO instances."
        ) from error


@functools.lru_cache(maxsize=4)
def _read_once(images_dir: Path, annotations: Path, key: str, version: tuple[int, int]) -> CocoData:
    """Reading a large file takes half a minute, and several parts ask for it."""
    reader = _Reader(f"{key}={annotations}")
    content = reader.load(annotations)
    images = sorted(content["images"], key=lambda image: reader.integer(image, "id", "an image"))
    image_ids = reader.unique([image["id"] for image in images], "images")
    names = [reader.file_name(image) for image in images]
    categories = sorted(
        content["categories"], key=lambda category: reader.integer(category, "id", "a category")
    )
    category_ids = reader.unique([category["id"] for category in categories], "categories")
    category_names = [reader.text(category, "name", "category") for category in categories]
    if len(set(category_names)) < len(category_names):
        twice = max(category_names, key=category_names.count)
        reader.refuse(f"two categories are called {twice}: give them names of their own.")
    sizes = np.array([reader.size(image) for image in images], dtype=np.int64).reshape(-1, 2)
    objects = reader.objects(content["annotations"], image_ids, sizes, category_ids)
    return CocoData(
        images_dir=images_dir,
        annotations=annotations,
        key=key,
        image_ids=image_ids,
        sizes=sizes,
        names=b"".join(names),
        name_ends=np.cumsum([len(name) for name in names]),
        category_ids=category_ids,
        category_names=tuple(category_names),
        **objects,
    )


class _Reader:
    """Takes a file of annotations apart, and says what is wrong with it."""

    def __init__(self, file: str) -> None:
        self._file = printable(file)

    def refuse(self, problem: str) -> None:
        raise UserError(f"{self._file}: {problem}")

    def load(self, path: Path) -> dict[str, list[dict[str, Any]]]:
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self._file} is no JSON ({error}): give another file.") from error
        for part in ("images", "annotations", "categories"):
            entries = content.get(part) if isinstance(content, dict) else None
            if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
                self.refuse(f'it has no list of "{part}": give a file of COCO instances.')
            if not entries and part != "annotations":
                self.refuse(f'its list of "{part}" is empty: give a file of COCO instances.')
        return dict(content)

    def integer(self, entry: Mapping[str, Any], name: str, what: str) -> int:
        value = entry.get(name)
        if type(value) is not int or not -(2**63) <= value < 2**63:
            self.refuse(f'{what} has "{name}": {value!r}: give it an integer.')
        return int(value)  # type: ignore[arg-type]

    def text(self, entry: Mapping[str, Any], name: str, what: str) -> str:
        value = entry.get(name)
        if not isinstance(value, str) or not value:
            self.refuse(f'{what} {entry["id"]} has "{name}": {value!r}: give it a name.')
        return str(value)

    def file_name(self, image: Mapping[str, Any]) -> bytes:
        name = self.text(image, "file_name", "image")
        try:
            return os.fsencode(name)
        except UnicodeEncodeError:
            raise UserError(
                f"{self._file}: image {image['id']} has the file_name {name!r}, which no file can"
                " have: correct it."
            ) from None

    def size(self, image: Mapping[str, Any]) -> tuple[int, int]:
        what = f"image {image['id']}"
        size = self.integer(image, "height", what), self.integer(image, "width", what)
        if min(size) < 1:
            self.refuse(f"{what} is {size[0]} × {size[1]} pixels: give it its size.")
        return size

    def unique(self, numbers: Sequence[int], what: str) -> NDArray[np.int64]:
        """``numbers``, which are sorted."""
        array = np.array(numbers, dtype=np.int64)
        twice = array[1:][np.diff(array) == 0]
        if len(twice):
            self.refuse(f"two {what} have the id {twice[0]}: give each its own.")
        return array

    def objects(
        self,
        annotations: Sequence[Mapping[str, Any]],
        image_ids: NDArray[np.int64],
        sizes: NDArray[np.int64],
        category_ids: NDArray[np.int64],
    ) -> dict[str, Any]:
        """The arrays of :class:`CocoData` over annotations, in the order of their images."""
        image_of = {number: index for index, number in enumerate(image_ids.tolist())}
        label_of = {number: label for label, number in enumerate(category_ids.tolist(), start=1)}
        found: list[tuple[int, Mapping[str, Any]]] = []
        problems = []
        for entry in annotations:
            index = _known(image_of, entry.get("image_id"))
            if index is None:
                problems.append(
                    f"annotation {entry.get('id')} is of image_id {entry.get('image_id')!r}, which"
                    ' is not among the "images"'
                )
            else:
                found.append((index, entry))
        found.sort(key=lambda pair: pair[0])
        packed = SegmentationsBuilder()
        rows, labels = array("d"), array("q")  # lists of a million objects would not be given back
        for index, entry in found:
            try:
                label = _known(label_of, entry.get("category_id"))
                if label is None:
                    unknown = f"category_id {entry.get('category_id')!r}"
                    raise ValueError(f'has {unknown}, which is not among the "categories"')
                rows.extend(_box_and_area(entry))
                labels.extend((_number(entry.get("id")), label, int(entry.get("iscrowd") == 1)))
                packed.add(entry.get("segmentation"), sizes[index].tolist())
            except ValueError as error:
                problems.append(f"annotation {entry.get('id')} {error}")
        if problems:
            more = f" (and {len(problems) - 1} more such problems)" if problems[1:] else ""
            self.refuse(f"{problems[0]}{more}: correct or remove it.")
        numbers = np.array(rows).reshape(-1, 5)
        integers = np.array(labels).reshape(-1, 3)
        counts = np.bincount([index for index, _ in found], minlength=len(image_ids))
        return {
            "offsets": np.concatenate(([0], counts.cumsum())),
            "annotation_ids": integers[:, 0].copy(),
            "boxes": numbers[:, :4].copy(),
            "labels": integers[:, 1].copy(),
            "areas": numbers[:, 4].copy(),
            "crowd": integers[:, 2] == 1,
            "segmentations": packed.build(),
        }


def _known(places: Mapping[int, int], value: Any) -> int | None:
    """Where ``value`` is; None unless it is an integer that has a place."""
    return places.get(value) if type(value) is int else None


def _number(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("has an id that is no integer")
    return value


def _box_and_area(entry: Mapping[str, Any]) -> tuple[float, ...]:
    """x0, y0, x1, y1 and the area.

    Raises:
        ValueError: they are not numbers, or a side is negative.
    """
    try:
        x, y, width, height = (float(side) for side in entry["bbox"])
        area = float(entry["area"]) if entry.get("area") is not None else width * height
    except (KeyError, TypeError, ValueError):
        shown = entry.get("bbox")
        raise ValueError(f"has bbox {shown!r}, not x, y, width and height") from None
    if not all(map(math.isfinite, (x, y, width, height, area))) or min(width, height) < 0:
        raise ValueError(f"has bbox {[x, y, width, height]} and area {area:g}")
    return x, y, x + width, y + height, area
