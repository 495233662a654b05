"""Pictures of what a trained detector finds in images: boxes, masks, names and scores."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attnorm.config import CocoConfig
from attnorm.data.names import readable
from attnorm.detection.pictures import draw
from attnorm.detection.predictions import ImagePredictions, from_detections
from attnorm.detection.transform import Geometry, PaddedNormalization, resized_size
from attnorm.errors import UserError
from attnorm.reporting.predict import read_pixels
from attnorm.run.trained import Trained


def show_objects(
    paths: list[Path], trained: Trained, score: float, folder: Path, console: Console
) -> None:
    """Print the objects of every image, and write the image with them drawn into ``folder``.

    Args:
        score: objects of a lower one are left out.
        folder: gets ``NAME.objects.png`` for each image.

    Raises:
        UserError: a path is no file or no image, or ``folder`` cannot be written.
    """
    for path in paths:
        image = read_pixels(path)
        found = find_objects(image, trained)
        target = folder / f"{path.stem}.objects.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            drawn = draw(image.numpy(), found, trained.class_names, score)
            Image.fromarray(drawn).save(target)
        except OSError as error:
            raise UserError(f"{target} cannot be written: {error.strerror or error}.") from error
        console.print(f"\n{path}", soft_wrap=True, markup=False)
        console.print(_table(found, trained, score))
        console.print(f"drawn in {target}", soft_wrap=True, markup=False)


def find_objects(image: Tensor, trained: Trained) -> ImagePredictions:
    """What the detector finds in an image, uint8 (H, W, 3), seen as in an evaluation."""
    data = trained.config.data
    assert isinstance(data, CocoConfig), "a detector's data"
    height, width = image.shape[:2]
    size = resized_size((height, width), data.val_size, data.max_size)
    normalize = PaddedNormalization(
        data.mean,
        data.std,
        data.size_divisible,
        device=trained.device,
        dtype=trained.precision.input_dtype,
        memory_format=trained.placement.memory_format,
    )
    pixels = Geometry((height, width), size).pixels(image).reshape(-1)
    with torch.inference_mode(), trained.precision.autocast():
        (detections,) = trained.model(normalize(pixels, [size]), [size])
    return from_detections(detections, 0, size, (height, width))


def _table(found: ImagePredictions, trained: Trained, score: float) -> Table:
    table = Table()
    for column in ("score", "class", "x", "y", "width", "height"):
        table.add_column(column, justify="left" if column == "class" else "right")
    shown = found.select(found.scores >= score)
    for label, value, box in zip(shown.labels, shown.scores, shown.boxes, strict=True):
        name = readable(trained.class_names[int(label) - 1])
        table.add_row(f"{100 * value:.1f} %", name, *(f"{side:.0f}" for side in box))
    return table
