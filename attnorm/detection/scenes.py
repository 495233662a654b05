"""The embedded detection data: scenes of real digit scans, written once in COCO's layout.

The scans (UCI Machine Learning Repository, CC BY 4.0) lie on textured ground in several sizes and
colours and cover each other. What is visible of each is known to the pixel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from attnorm.config import CocoConfig
from attnorm.data.digits import digits_root
from attnorm.errors import UserError
from attnorm.files import cache_folder, make_whole

SIZES = ((128, 128), (128, 160), (160, 128), (128, 192), (144, 128))  # height, width
MAX_DIGITS = 5
DIGIT_SIDES = (32, 72)  # pixels, of the scan
CROWD_SIDES = (14, 20)
CROWD_DIGITS = (5, 8)
EMPTY_SHARE, CROWD_SHARE = 0.04, 0.12  # of scenes without digits, of those with a crowd
# Of a digit, at least this share stays visible under those that are laid on it.
MIN_VISIBLE = 0.7
_PLACES = 8  # tried for a digit before it is left out
# From no ink to all of it, in shares of the scan's white. The scans are 8 pixels wide: laid on as
# they are, their digits fade into the ground, and where one ends is anybody's guess.
_INK_EDGE = (0.2, 0.4)
_SOLID = 0.5  # opacity from which a pixel is part of a digit
_JPEG_QUALITY = 92

Bitmap = NDArray[np.bool_]
Pixels = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Scan:
    digit: int
    grey: Image.Image


@dataclass(frozen=True, eq=False)
class _Object:
    """One digit or one crowd in a scene."""

    digit: int
    mask: Bitmap
    crowd: bool = False


def scenes_root(config: CocoConfig) -> Path:
    """The folder with the scenes, which are made first where they are not there yet.

    Raises:
        UserError: the folder cannot be written, or ``data.root`` holds something else.
    """
    train, val = config.num_train_scenes, config.num_val_scenes
    if config.root is None:
        folder = cache_folder() / f"digit-scenes-v2-{train}-{val}"
    else:
        folder = Path(config.root).expanduser().absolute()
    make_digit_scenes(folder, config)
    return folder


def make_digit_scenes(folder: Path, config: CocoConfig) -> None:
    """Fill ``folder``, unless it holds these scenes already.

    Several processes may ask at once; a folder under the final name is always complete. The same
    numbers of scenes give the same scenes.

    Raises:
        UserError: the folder cannot be written, or holds something else.
    """
    if _is_complete(folder, config):
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"data.root={folder} is neither empty nor a folder of {config.num_train_scenes} +"
            f" {config.num_val_scenes} digit scenes: give another data.root, or none."
        )
    try:
        make_whole(
            folder,
            lambda building: _write(building, config),
            lambda: _is_complete(folder, config),
        )
    except OSError as error:
        raise UserError(
            f"The digit scenes cannot be written to {folder} ({error.strerror or error}): set"
            " data.root or ATTNORM_CACHE to a folder that can be written."
        ) from error


def _is_complete(folder: Path, config: CocoConfig) -> bool:
    """Whether ``folder`` has the scenes of ``config``."""
    for count, path in (
        (config.num_train_scenes, folder / config.train_annotations),
        (config.num_val_scenes, folder / config.val_annotations),
    ):
        try:
            information = json.loads(path.read_bytes())["info"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if information.get("scenes") != count:
            return False
    return True


def _write(root: Path, config: CocoConfig) -> None:
    digits = digits_root(None)
    for number, split, count, images, file in (
        (0, "train", config.num_train_scenes, config.train_images, config.train_annotations),
        (1, "val", config.num_val_scenes, config.val_images, config.val_annotations),
    ):
        scans = _scans(digits / split)
        (root / images).mkdir(parents=True)
        content: dict[str, Any] = {
            "info": {"description": "Scenes of digit scans", "scenes": count},
            "licenses": [{"id": 1, "name": "CC BY 4.0"}],
            "categories": [{"id": digit, "name": str(digit)} for digit in range(10)],
            "images": [],
            "annotations": [],
        }
        for index in range(count):
            # A generator for each: scene 7 does not depend on how many there are.
            random = np.random.Generator(np.random.Philox([number, index]))
            pixels, objects = _scene(random, scans)
            _record(content, index + 1, pixels.shape[:2], objects)
            name = content["images"][-1]["file_name"]
            Image.fromarray(pixels).save(root / images / name, quality=_JPEG_QUALITY, subsampling=0)
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")


def _scans(folder: Path) -> list[_Scan]:
    """All scans of a split, light on black."""
    found = []
    for path in sorted(folder.glob("*/*.jpg")):
        with Image.open(path) as opened:
            found.append(_Scan(int(path.parent.name), opened.convert("L")))
    return found


def _record(
    content: dict[str, Any], number: int, size: Sequence[int], objects: Sequence[_Object]
) -> None:
    """Add a scene to a file of COCO instances."""
    content["images"].append(
        {
            "id": number,
            "file_name": f"{number:012d}.jpg",
            "height": size[0],
            "width": size[1],
            "license": 1,
        }
    )
    for thing in objects:
        code = coco_mask.encode(np.asfortranarray(thing.mask, dtype=np.uint8))
        segmentation = {"size": list(size), "counts": code["counts"].decode()}
        if thing.crowd:  # as COCO has its crowds
            segmentation["counts"] = _counts(thing.mask)
        content["annotations"].append(
            {
                "id": len(content["annotations"]) + 1,
                "image_id": number,
                "category_id": thing.digit,
                "iscrowd": int(thing.crowd),
                "area": int(thing.mask.sum()),
                "bbox": coco_mask.toBbox(code).tolist(),
                "segmentation": segmentation,
            }
        )


def _counts(mask: Bitmap) -> list[int]:
    """Lengths of the runs of pixels outside and inside in turns, down the columns."""
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    lengths: list[int] = np.diff(changes, prepend=0, append=len(pixels)).tolist()
    return lengths


# ---------------------------------------------------------------------- what a scene looks like


def _scene(
    random: np.random.Generator, scans: Sequence[_Scan]
) -> tuple[NDArray[np.uint8], list[_Object]]:
    """Pixels (height, width, 3), and what is in them."""
    size = SIZES[random.integers(len(SIZES))]
    pixels = _ground(random, size)
    objects: list[_Object] = []
    if random.random() >= EMPTY_SHARE:
        if random.random() < CROWD_SHARE:
            objects.append(_lay_crowd(random, scans, pixels))
        for _ in range(random.integers(1, MAX_DIGITS + 1)):
            scan = scans[int(random.integers(len(scans)))]
            for _ in range(_PLACES):
                opacity = _placed(random, scan, int(random.integers(*DIGIT_SIDES)), size)
                covered = _covered(objects, opacity >= _SOLID)
                if covered is not None:
                    _paint(random, pixels, opacity)
                    objects = [*covered, _Object(scan.digit, opacity >= _SOLID)]
                    break
    noise = random.normal(0, 4, pixels.shape).astype(np.float32)
    return (pixels + noise).clip(0, 255).astype(np.uint8), objects


def _ground(random: np.random.Generator, size: tuple[int, int]) -> Pixels:
    """Blotches of dark colours over a fine grain."""
    height, width = size
    total = np.full((height, width, 3), random.uniform(10, 70, 3), dtype=np.float32)
    for cells, strength in ((3, 40), (12, 20)):
        coarse = random.uniform(-strength, strength, (cells, cells, 3)).astype(np.float32)
        for channel in range(3):
            plane = Image.fromarray(coarse[..., channel])
            total[..., channel] += np.asarray(
                plane.resize((width, height), Image.Resampling.BICUBIC)
            )
    return total.clip(0, 120)


def _lay_crowd(random: np.random.Generator, scans: Sequence[_Scan], pixels: Pixels) -> _Object:
    """A row of one digit, many times over and small, annotated as a whole."""
    size = pixels.shape[0], pixels.shape[1]
    digit = int(random.integers(10))
    own = [scan for scan in scans if scan.digit == digit]
    side, count = int(random.integers(*CROWD_SIDES)), int(random.integers(*CROWD_DIGITS))
    step = round(0.55 * side)
    top = int(random.integers(size[0] - side))
    left = int(random.integers(size[1] - side - step * (count - 1)))
    mask = np.zeros(size, dtype=bool)
    for place in range(count):
        corner = top, left + place * step
        opacity = _opacity(own[int(random.integers(len(own)))], side, corner, size)
        _paint(random, pixels, opacity)
        mask |= opacity >= _SOLID
    return _Object(digit, mask, crowd=True)


def _placed(random: np.random.Generator, scan: _Scan, side: int, size: tuple[int, int]) -> Pixels:
    """The opacity of a digit somewhere inside a scene, (height, width)."""
    corner = int(random.integers(size[0] - side)), int(random.integers(size[1] - side))
    return _opacity(scan, side, corner, size)


def _opacity(scan: _Scan, side: int, corner: tuple[int, int], size: tuple[int, int]) -> Pixels:
    ink = np.asarray(scan.grey.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    low, high = _INK_EDGE
    opacity = np.zeros(size, dtype=np.float32)
    square = opacity[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
    square[:] = ((ink / 255 - low) / (high - low)).clip(0, 1)
    return opacity


def _covered(objects: Sequence[_Object], on_top: Bitmap) -> list[_Object] | None:
    """What stays visible of ``objects``; None where it were too little of one."""
    remaining = []
    for thing in objects:
        visible = thing.mask & ~on_top
        if visible.sum() < MIN_VISIBLE * thing.mask.sum():
            return None
        remaining.append(_Object(thing.digit, visible, thing.crowd))
    return remaining


def _paint(random: np.random.Generator, pixels: Pixels, opacity: Pixels) -> None:
    """Lay a digit of a light colour on the scene."""
    color = random.uniform(150, 255, 3).astype(np.float32)
    pixels += opacity[..., None] * (color - pixels)
