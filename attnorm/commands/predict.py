"""Look at images with a trained model: the likeliest classes, or the objects of a detector.

attnorm predict checkpoint=runs/NAME/best.pt image.jpg [image.jpg ...] [key=value ...]

checkpoint=PATH     a last.pt or best.pt; the model is built from the config inside it
top=5               classes shown of each image, and for AN the components that fired
score=0.5           of a detector's objects, the least that is shown
output=FOLDER       where a detector's pictures go, as NAME.objects.png (default: here)
allow=PATH          a class that the checkpoint may name though it is not of attnorm, torch.nn
                    or timm.layers, such as mypackage.MyNorm; [A,B] for several
device=, precision=, data.image_size=, data.resize_size=   as in training
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING
from rich.console import Console

from attnorm.config import read_arguments
from attnorm.config.arguments import show_help, wants_help
from attnorm.config.checks import require
from attnorm.errors import UserError, exit_on_user_error
from attnorm.reporting.predict import show_predictions
from attnorm.run.trained import KEYS, load_trained


@dataclass
class PredictArguments:
    """What the command takes beside keys of the config, and images."""

    checkpoint: str = MISSING
    top: int = 5
    score: float = 0.5
    output: str = "."
    allow: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.top >= 1, "top", self.top, "at least 1")
        require(0 <= self.score <= 1, "score", self.score, "from 0 to 1")


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after a mistake."""
    if wants_help(arguments):
        return show_help(__doc__ or "")
    with exit_on_user_error():
        own, overrides, images = read_arguments(
            arguments, PredictArguments, KEYS, "attnorm predict", positional=True
        )
        if not images:
            raise UserError("No image is given: pass the path of one or more.")
        trained = load_trained(Path(own.checkpoint), overrides, allow=own.allow)
        console = Console(highlight=False)
        paths = [Path(image) for image in images]
        if trained.config.detector is not None:
            from attnorm.reporting.predict_objects import show_objects  # a second of imports

            show_objects(paths, trained, own.score, Path(own.output), console)
        else:
            show_predictions(paths, trained, own.top, console)
    return 0
