"""Small data sets in COCO's format, drawn by the tests themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from attnorm.config import CocoConfig
from attnorm.distributed import Placement

CATEGORIES = [(90, "spoon"), (3, "cup"), (17, "plate")]  # unsorted, with holes, as they may come
# Height and width: wide and high ones, in no order.
TRAIN_SIZES = [(48, 64), (64, 48), (50, 70), (40, 40), (72, 45), (60, 80), (81, 54), (44, 77)]
VAL_SIZES = [(48, 64), (66, 40), (40, 40), (52, 90), (60, 60)]


def ellipse(size: tuple[int, int], x: float, y: float, a: float, b: float) -> NDArray[np.uint8]:
    """A mask, (height, width), with centre and half axes in pixels."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    inside = ((columns + 0.5 - x) / a) ** 2 + ((rows + 0.5 - y) / b) ** 2 <= 1
    return inside.astype(np.uint8)


def compressed(mask: NDArray[np.uint8]) -> dict[str, Any]:
    code = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


def uncompressed(mask: NDArray[np.uint8]) -> dict[str, Any]:
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels, prepend=np.uint8(0)))
    counts = np.diff(changes, prepend=0, append=len(pixels))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def annotation(
    image_id: int, bbox: Sequence[float], segmentation: Any, category: int = 3, **other: Any
) -> dict[str, Any]:
    area = float(bbox[2] * bbox[3])
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": list(bbox),
        "segmentation": segmentation,
        "area": area,
        "iscrowd": 0,
        **other,
    }


def rectangle(image_id: int, bbox: Sequence[float], category: int = 3) -> dict[str, Any]:
    x, y, width, height = bbox
    ring = [x, y, x + width, y, x + width, y + height, x, y + height]
    return annotation(image_id, bbox, [ring], category)


def objects_of(image_id: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    """One in each of COCO's forms: a polygon, a mask of an ellipse, and a crowd."""
    height, width = size
    oval = ellipse(size, width * 0.7, height * 0.6, width * 0.2, height * 0.25)
    crowd = ellipse(size, width * 0.3, height * 0.8, width * 0.25, height * 0.12)
    return [
        rectangle(image_id, (4.5, 5.25, width * 0.4, height * 0.3), category=90),
        annotation(image_id, _box(oval), compressed(oval), category=3),
        annotation(image_id, _box(crowd), uncompressed(crowd), category=17, iscrowd=1),
    ]


def _box(mask: NDArray[np.uint8]) -> list[float]:
    box: list[float] = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))).tolist()
    return box


def write_split(
    root: Path,
    split: str,
    sizes: Mapping[int, tuple[int, int]],
    annotations: Sequence[Mapping[str, Any]],
    grey: Sequence[int] = (),
) -> Path:
    """Smooth noise as JPEGs, and their annotations; returns the file of these."""
    folder = root / f"{split}2017"
    folder.mkdir(parents=True)
    images = []
    for number, (height, width) in sizes.items():
        random = np.random.default_rng(number)
        coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        name = f"{number:012d}.jpg"
        picture.convert("L" if number in grey else "RGB").save(folder / name, quality=95)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
    content = {
        "images": images,
        "annotations": [
            {"id": index, **values} for index, values in enumerate(annotations, start=100)
        ],
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES],
    }
    path = root / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_coco(root: Path) -> Path:
    """Both halves: the last image but one has no objects, the last is grey."""
    for split, all_sizes, first in (("train", TRAIN_SIZES, 11), ("val", VAL_SIZES, 501)):
        sizes = {first + 3 * index: size for index, size in enumerate(all_sizes)}
        numbers = list(sizes)
        annotations = [
            thing
            for number, size in sizes.items()
            if number != numbers[-2]
            for thing in objects_of(number, size)
        ]
        write_split(root, split, sizes, annotations[::-1], grey=numbers[-1:])
    return root


def write_maps(root: Path, mode: str = "L") -> None:
    """A map for every training picture: the number of its row, 100 more in its right half."""
    folder = root / "stuffthingmaps" / "train2017"
    folder.mkdir(parents=True)
    for path in (root / "train2017").glob("*.jpg"):
        with Image.open(path) as opened:
            width, height = opened.size
        labels = np.repeat(np.arange(height, dtype=np.uint8)[:, None], width, axis=1)
        labels[:, width // 2 :] += 100
        picture = Image.fromarray(labels)
        if mode == "P":
            picture.putpalette([7] * 768)
        picture.save(folder / f"{path.stem}.png")


def change(path: Path, how: Any) -> None:
    """Let ``how`` alter what a file of annotations says."""
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


def config(root: Path, **values: Any) -> CocoConfig:
    """Of images about as large as they are, in this process."""
    settings: dict[str, Any] = {
        "name": "small",
        "root": str(root),
        "workers": 0,
        "train_sizes": [64],
        "val_size": 64,
        "max_size": 100,
        **values,
    }
    return CocoConfig(**settings)


def placement(batch_size: int = 2, **values: Any) -> Placement:
    return Placement(torch.device("cpu"), batch_size, **values)
