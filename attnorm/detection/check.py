"""What is wrong with a data set, found before a run begins: the file, the id, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnorm.config import CocoConfig
from attnorm.data.source import printable
from attnorm.detection.coco import CocoData, TrainingView, read_split, training_view
from attnorm.detection.masks import IGNORED, SEMANTIC_STRIDE
from attnorm.detection.sample import THINGS, semantic_folder, semantic_name
from attnorm.errors import UserError

# Headers of this many pictures are read, spread over the data set; the loader compares all sizes.
SIZES_CHECKED = 5_000


def check_coco(config: CocoConfig, training: bool) -> None:
    """Refuse data that cannot be trained on or evaluated.

    Every problem is told by its first case and the number of others. Pictures are not decoded: the
    loader finds those that are damaged.

    Args:
        training: both halves are needed; else the validation half alone.

    Raises:
        UserError: files are missing or say nothing, boxes lie outside of their image, pictures have
            other sizes than their annotations, or objects to train on have no mask.
    """
    for is_train in (True, False) if training else (False,):
        data = read_split(config, is_train)
        _check_pictures(data)
        _check_boxes(data)
        _check_sizes(data)
        if is_train:
            view = training_view(data, config.min_side)
            _check_objects(view, config.min_side)
            _check_semantic(view, config)


def _check_pictures(data: CocoData) -> None:
    folder = printable(str(data.images_dir))
    if not data.images_dir.is_dir():
        images = data.key.replace("annotations", "images")
        raise UserError(
            f"{folder} is not a folder: give data.root and {images} so that they lead to the"
            " pictures."
        )
    missing = _missing([data.name(index) for index in range(len(data))], data.images_dir)
    if missing:
        first = missing[0]
        raise UserError(
            f"{_picture(data, first)} is missing, image {data.image_ids[first]} of"
            f" {_file(data)}{_more(missing)}: complete {folder}, or take the images out of the"
            " file."
        )


def _missing(names: Sequence[str], folder: Path) -> list[int]:
    """The places in ``names`` of files that ``folder`` does not have; each folder is read once."""
    present: dict[str, set[str]] = {}
    missing = []
    for index, name in enumerate(names):
        parent, _, base = name.rpartition("/")
        if parent not in present:
            below = folder / parent
            present[parent] = set()
            if below.is_dir():
                present[parent].update(entry.name for entry in below.iterdir())
        if base not in present[parent]:
            missing.append(index)
    return missing


def _check_boxes(data: CocoData) -> None:
    image_of = data.image_of
    heights, widths = data.sizes[image_of].T
    x0, y0, x1, y1 = data.boxes.T
    outside = np.flatnonzero((x1 <= 0) | (y1 <= 0) | (x0 >= widths) | (y0 >= heights))
    if len(outside):
        first = int(outside[0])
        index = int(image_of[first])
        height, width = data.size(index)
        raise UserError(
            f"{_file(data)}: the box of annotation {data.annotation_ids[first]} (x"
            f" {x0[first]:g} to {x1[first]:g}, y {y0[first]:g} to {y1[first]:g}) lies outside of"
            f" {data.name(index)}, which is {height} × {width} pixels high and wide"
            f"{_more(outside)}: correct or remove it."
        )


def _check_sizes(data: CocoData) -> None:
    checked = np.unique(np.linspace(0, len(data) - 1, min(len(data), SIZES_CHECKED), dtype=int))
    wrong = []
    for index in checked.tolist():
        size = _size_of(data.path(index))
        if size is not None and size != data.size(index):
            wrong.append((index, size))
    if wrong:
        index, size = wrong[0]
        height, width = data.size(index)
        rotated = size == (width, height)
        hint = " (rotations that EXIF data ask for are not applied)" if rotated else ""
        raise UserError(
            f"{_picture(data, index)} is {size[0]} × {size[1]} pixels high and wide, image"
            f" {data.image_ids[index]} of {_file(data)} is {height} × {width}{hint}"
            f"{_more(wrong)}: give the picture that was annotated, or correct the file."
        )


def _size_of(path: Path) -> tuple[int, int] | None:
    """Height and width from a picture's header; None where the loader will say what is wrong."""
    try:
        with Image.open(path) as opened:
            return opened.height, opened.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _check_objects(view: TrainingView, min_side: int) -> None:
    data = view.data
    if not len(view):
        raise UserError(
            f"{_file(data)} has nothing to train on: no object, crowds aside, with a box of a pixel"
            f" or more in an image of data.min_side={min_side} or more."
        )
    without = view.objects[~data.segmentations.present[view.objects]]
    if len(without):
        raise UserError(
            f"{_file(data)}: annotation {data.annotation_ids[without[0]]} has no segmentation of"
            f" three points or more{_more(without)}: masks are learnt too, so give it one or remove"
            " it."
        )


def _check_semantic(view: TrainingView, config: CocoConfig) -> None:
    if config.semantic is None:
        return
    if config.size_divisible % SEMANTIC_STRIDE:
        raise UserError(
            f"data.size_divisible={config.size_divisible} with data.semantic={config.semantic}:"
            f" give a multiple of {SEMANTIC_STRIDE}, the stride of semantic maps."
        )
    data = view.data
    if config.semantic == THINGS:
        if len(data.category_ids) >= IGNORED:
            raise UserError(
                f"data.semantic=things: {_file(data)} has {len(data.category_ids)} categories, maps"
                f" have room for {IGNORED - 1}: use data.semantic=null and"
                " detector.semantic_branch=false."
            )
        return
    folder = semantic_folder(data, config)
    names = [semantic_name(data, index) for index in view.images.tolist()]
    missing = _missing(names, folder)
    if missing:
        raise UserError(
            f"{printable(str(folder / names[missing[0]]))} is missing{_more(missing)}:"
            f" data.semantic={config.semantic} needs a map for every training image. Complete them,"
            " or use data.semantic=things."
        )


def _file(data: CocoData) -> str:
    return printable(f"{data.key}={data.annotations}")


def _picture(data: CocoData, index: int) -> str:
    return printable(str(data.path(index)))


def _more(cases: Sequence[object] | NDArray[np.int64]) -> str:
    return f" (and {len(cases) - 1} more)" if len(cases) > 1 else ""
