"""Pictures of what was found: boxes, masks, names and scores; or found, missed and made up."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from attnorm.data.decode import decode_rgb
from attnorm.detection.predictions import ImagePredictions

Picture = NDArray[np.uint8]  # (height, width, 3)
Color = tuple[int, int, int]

# Smaller images are magnified, by a whole number, until names can be read in them.
LEGIBLE = 320
FOUND, MISSED, MADE_UP, IGNORED = (47, 158, 99), (220, 50, 60), (240, 150, 30), (150, 150, 150)
_MASK_OPACITY = 0.45


def draw(
    image: Picture, predictions: ImagePredictions, class_names: Sequence[str], score: float = 0.5
) -> Picture:
    """The image with what was found in it, a colour for each class.

    An image of less than ``LEGIBLE`` pixels comes back magnified.

    Args:
        class_names: of labels 1, 2, …
        score: objects of a lower one are left out.
    """
    shown = predictions.select(predictions.scores >= score)
    canvas = _Canvas.of(image, predictions)
    objects = list(zip(shown.labels.tolist(), shown.scores.tolist(), strict=True))
    for index, (label, _) in enumerate(objects):
        if shown.masks is not None:
            canvas.fill(shown.bitmap(index), color_of(label))
    # The best last, on top of the others.
    for index, (label, value) in reversed(list(enumerate(objects))):
        text = f"{class_names[label - 1]} {value:.2f}"
        canvas.outline(shown.boxes[index].tolist(), color_of(label), text)
    return canvas.picture()


class AnnotatedImages(Protocol):
    """What a data set needs to have for its objects to be drawn, in arrays over all images."""

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """(I,)"""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(I + 1,): image i has the objects from ``offsets[i]`` to ``offsets[i + 1]``."""

    @property
    def boxes(self) -> NDArray[np.float64]:
        """(M, 4): x0, y0, x1, y1 in pixels of the image file."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(M,), 1 to the number of classes."""

    @property
    def crowd(self) -> NDArray[np.bool_]:
        """(M,)"""

    def path(self, index: int) -> Path:
        """The file of image ``index``."""


def found_and_missed(
    coco: AnnotatedImages,
    predictions: ImagePredictions,
    class_names: Sequence[str],
    score: float = 0.5,
) -> Picture:
    """:func:`draw_comparison` of one image of a data set, read from its file.

    Raises:
        BrokenImageError: it does not decode.
    """
    index = int(np.flatnonzero(coco.image_ids == predictions.image_id)[0])
    own = slice(int(coco.offsets[index]), int(coco.offsets[index + 1]))
    boxes = np.asarray(coco.boxes[own], dtype=np.float64)
    sides = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
    labels = np.asarray(coco.labels[own], dtype=np.int64)
    size, certain = predictions.size, np.ones(len(labels))
    truth = ImagePredictions(predictions.image_id, size, labels, certain, sides)
    image = np.asarray(decode_rgb(np.fromfile(coco.path(index), dtype=np.uint8)))
    crowd = np.asarray(coco.crowd[own], dtype=bool)
    return draw_comparison(image, predictions, truth, class_names, score, crowd)


def draw_comparison(
    image: Picture,
    predictions: ImagePredictions,
    truth: ImagePredictions,
    class_names: Sequence[str],
    score: float = 0.5,
    crowd: NDArray[np.bool_] | None = None,
) -> Picture:
    """The image with what was found in green, missed in red, and found where nothing is in orange.

    Found is what overlaps an object of its class, box by box, by half or more, each object once and
    the highest score first. Crowds, and what was found inside of them, are grey.

    Args:
        score: predictions of a lower one are left out.
        crowd: (M,), which of ``truth`` are crowds.
    """
    shown = predictions.select(predictions.scores >= score)
    crowd = np.zeros(len(truth), dtype=bool) if crowd is None else crowd
    matches = match(shown, truth, crowd)
    colors = [
        MADE_UP if matched is None else IGNORED if crowd[matched] else FOUND for matched in matches
    ]
    canvas = _Canvas.of(image, predictions)
    if shown.masks is not None:
        for index, color in enumerate(colors):
            canvas.fill(shown.bitmap(index), color)
    for index, is_crowd in enumerate(crowd):
        if is_crowd:
            canvas.outline(truth.boxes[index].tolist(), IGNORED)
        elif index not in matches:
            name = class_names[int(truth.labels[index]) - 1]
            canvas.outline(truth.boxes[index].tolist(), MISSED, name)
    for index in np.argsort(shown.scores, kind="stable").tolist():  # the best on top
        text = f"{class_names[int(shown.labels[index]) - 1]} {shown.scores[index]:.2f}"
        canvas.outline(shown.boxes[index].tolist(), colors[index], text)
    return canvas.picture()


def match(
    predictions: ImagePredictions,
    truth: ImagePredictions,
    crowd: NDArray[np.bool_],
    overlap: float = 0.5,
) -> list[int | None]:
    """For each prediction the object of ``truth`` that it finds, or None.

    As COCO matches: the best overlapping object of the class that is still free, a crowd only where
    there is none, and any number of times.
    """
    order = np.argsort(-predictions.scores, kind="stable")
    if not len(truth) or not len(order):
        return [None] * len(order)
    shared = coco_mask.iou(predictions.boxes, truth.boxes, crowd.astype(np.uint8).tolist())
    found: list[int | None] = [None] * len(order)
    free = np.ones(len(truth), dtype=bool)
    for index in order:
        allowed = (truth.labels == predictions.labels[index]) & (shared[index] >= overlap)
        for candidates in (allowed & free & ~crowd, allowed & crowd):
            if candidates.any():
                best = int(np.argmax(np.where(candidates, shared[index], -1)))
                found[index], free[best] = best, False
                break
    return found


def color_of(label: int) -> Color:
    """A hue for each class, neighbours far apart on the circle of hues."""
    hue = label * (math.sqrt(5) - 1) / 2 % 1
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 0.95))
    return red, green, blue


@dataclass
class _Canvas:
    """An image under drawings, ``factor`` times as large as the original."""

    pixels: Picture
    factor: int

    @classmethod
    def of(cls, image: Picture, predictions: ImagePredictions) -> _Canvas:
        if image.shape[:2] != predictions.size:
            raise ValueError(f"predictions of {predictions.size} for an image of {image.shape[:2]}")
        factor = max(1, math.ceil(LEGIBLE / max(image.shape[:2])))
        return cls(_magnified(image, factor), factor)

    def fill(self, bitmap: NDArray[np.uint8], color: Color) -> None:
        inside = _magnified(bitmap, self.factor) > 0
        mixed = (1 - _MASK_OPACITY) * self.pixels[inside] + _MASK_OPACITY * np.array(color)
        self.pixels[inside] = mixed.round().astype(np.uint8)

    def outline(self, box: Sequence[float], color: Color, text: str = "") -> None:
        """A frame around x, y, width, height, and a name at its upper left corner."""
        canvas = Image.fromarray(self.pixels)
        pen = ImageDraw.Draw(canvas)
        height, width = self.pixels.shape[:2]
        x, y, right, bottom = (self.factor * side for side in _corners(box))
        stroke = max(2, round(min(height, width) / 240))
        pen.rectangle((x, y, max(right, x), max(bottom, y)), outline=color, width=stroke)
        if text:
            font = ImageFont.load_default(max(11, round(min(height, width) / 40)))
            _, _, text_width, text_height = pen.textbbox((0, 0), text, font=font)
            left = min(max(x, 0), max(width - text_width, 0))
            top = y - text_height if y >= text_height else y
            pen.rectangle((left, top, left + text_width, top + text_height), fill=color)
            pen.text((left, top), text, fill=_ink(color), font=font)
        self.pixels = np.array(canvas)

    def picture(self) -> Picture:
        return self.pixels


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height


def _magnified(pixels: NDArray[Any], factor: int) -> NDArray[Any]:
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _ink(color: Color) -> Color:
    """Black or white, whichever stands out (ITU-R BT.601 luma)."""
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
