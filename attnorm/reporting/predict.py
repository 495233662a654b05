"""Images classified by a trained model: the likeliest classes, and what fired in its AN layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attnorm.classification import labelled_images
from attnorm.data.decode import BrokenImageError, decode_rgb
from attnorm.data.names import readable
from attnorm.data.normalize import PixelNormalization
from attnorm.data.transforms import eval_transform
from attnorm.errors import UserError
from attnorm.norms.observe import attentive_layers, record_mixtures
from attnorm.run.trained import Trained

FIRED = 3  # components named for each layer


def show_predictions(paths: list[Path], trained: Trained, top: int, console: Console) -> None:
    """Print, image by image, the ``top`` classes and the strongest components of every AN layer.

    Raises:
        UserError: a path is no file, or no image.
    """
    for path in paths:
        image = read_image(path, trained)
        with record_mixtures(trained.model) as mixtures:
            probabilities = trained.logits(image)[0].softmax(0)
        console.print(f"\n{path}", soft_wrap=True, markup=False)
        console.print(_classes(probabilities, trained, top))
        if mixtures:
            console.print(_components(mixtures, trained))


def read_image(path: Path, trained: Trained) -> Tensor:
    """The centre crop of an image as the model is evaluated on it, (1, 3, H, W).

    Raises:
        UserError: no such file, or not an image.
    """
    data = labelled_images(trained.config)
    crop = eval_transform(data).centre(read_pixels(path))
    normalize = PixelNormalization(
        data.mean,
        data.std,
        device=trained.device,
        dtype=trained.precision.input_dtype,
        channels_last=trained.config.channels_last,
    )
    return normalize(crop[None])


def read_pixels(path: Path) -> Tensor:
    """An image file as it is, uint8 (H, W, 3).

    Raises:
        UserError: no such file, or not an image.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: check the path.")
    try:
        return decode_rgb(np.fromfile(path, dtype=np.uint8))
    except BrokenImageError as error:
        raise UserError(f"{path} cannot be decoded ({error}): give another image.") from error


def _classes(probabilities: Tensor, trained: Trained, top: int) -> Table:
    table = Table()
    table.add_column("probability", justify="right")
    table.add_column("class")
    best = probabilities.topk(min(top, len(probabilities)))
    for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        table.add_row(f"{100 * probability:.1f} %", readable(trained.class_names[index]))
    return table


def _components(mixtures: Mapping[str, Tensor], trained: Trained) -> Table:
    table = Table()
    for column in ("layer", "K", "components that fired most (λ)"):
        table.add_column(column, justify="right" if column == "K" else "left")
    for name, layer in attentive_layers(trained.model).items():
        weights = mixtures[name][0, : layer.num_components]
        best = weights.topk(min(FIRED, len(weights)))
        fired = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        text = "  ".join(f"{index + 1} ({weight:.2f})" for index, weight in fired)
        table.add_row(name, str(len(weights)), text)
    return table
