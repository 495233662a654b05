"""Classify images with a trained model: top-5 classes, and for AN the components that fired.

python scripts/predict.py checkpoint=runs/NAME/best.pt image.jpg [image.jpg ...] [top=5]

device=, precision=, data.image_size=, data.resize_size=   as in train.py
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attnorm.data.decode import BrokenImageError, Transform, decode_rgb
from attnorm.data.normalize import Normalization
from attnorm.errors import UserError, exit_on_user_error
from attnorm.reporting.mixtures import attentive_layers, record_mixtures
from attnorm.reporting.names import readable
from attnorm.reporting.trained import Trained, load_trained

FIRED = 3  # components named for each layer


@dataclass
class Options:
    checkpoint: Path | None = None
    images: list[Path] = field(default_factory=list)
    top: int = 5
    overrides: list[str] = field(default_factory=list)


def parse(arguments: list[str]) -> Options:
    """Raises UserError without a checkpoint or an image, or for an impossible top."""
    options = Options()
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or Path(argument).is_file():
            options.images.append(Path(argument))
        elif key == "checkpoint":
            options.checkpoint = Path(value)
        elif key == "top":
            if not value.isdigit() or int(value) < 1:
                raise UserError(f"top={value} is not possible: it must be at least 1.")
            options.top = int(value)
        else:
            options.overrides.append(argument)
    if options.checkpoint is None:
        raise UserError("checkpoint is not set: pass checkpoint=runs/NAME/best.pt.")
    if not options.images:
        raise UserError("No image is given: pass the path of one or more.")
    return options


def read_image(path: Path, trained: Trained) -> Tensor:
    """The centre crop of an image as the model is evaluated on it, (1, 3, H, W).

    Raises:
        UserError: no such file, or not an image.
    """
    data = trained.config.data
    if not path.is_file():
        raise UserError(f"{path} does not exist: check the path.")
    try:
        image = decode_rgb(np.fromfile(path, dtype=np.uint8))
    except BrokenImageError as error:
        raise UserError(f"{path} cannot be decoded ({error}): give another image.") from error
    crop = Transform(data.image_size, data.resize_size, None).centre(image)
    normalize = Normalization(
        data.mean,
        data.std,
        data.image_size,
        device=trained.device,
        dtype=trained.precision.input_dtype,
        channels_last=True,
    )
    return normalize(crop[None])


def predict(path: Path, trained: Trained, top: int, console: Console) -> None:
    """Print one image's classes and, for AN, the strongest components of every layer."""
    image = read_image(path, trained)
    with record_mixtures(trained.model) as mixtures:
        probabilities = trained.logits(image)[0].softmax(0)
    table = Table()
    table.add_column("probability", justify="right")
    table.add_column("class")
    best = probabilities.topk(min(top, len(probabilities)))
    for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        table.add_row(f"{100 * probability:.1f} %", readable(trained.class_names[index]))
    console.print(f"\n{path}", soft_wrap=True, markup=False)
    console.print(table)
    if mixtures:
        console.print(_components(trained, mixtures))


def _components(trained: Trained, mixtures: dict[str, Tensor]) -> Table:
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


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    with exit_on_user_error():
        options = parse(arguments)
        assert options.checkpoint is not None
        trained = load_trained(options.checkpoint, options.overrides)
        console = Console(highlight=False)
        for path in options.images:
            predict(path, trained, options.top, console)


if __name__ == "__main__":
    main(sys.argv[1:])
