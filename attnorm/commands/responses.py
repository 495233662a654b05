"""Filter responses of one or two checkpoints (paper, Figure 2), and AN's mixture weights.

  attnorm responses checkpoint=RUN/best.pt [checkpoint=OTHER/best.pt] [key=value ...]

  checkpoint=PATH       a last.pt or best.pt; give two to see AN beside BN, on the same images
  sites=PATTERN         whole module names, such as 'layer4\\.[012]' (default: last unit per stage)
  classes=3, classes=a,b  the first so many classes, or these (default: 3)
  images=5              validation images of each class
  limit=N               images for the mixture weights (default: the whole validation set)
  output=FOLDER         default: responses/ beside the first checkpoint
  allow=PATH            a class that the checkpoints may name though it is not of attnorm, torch.nn
                        or timm.layers, such as mypackage.MyNorm; [A,B] for several
  data=NAME data.KEY=, loader=, batch_size=, precision=, device=   as in attnorm eval

Writes index.html, spread.md, spread.json, mixtures_*.md and figures/*.svg, *.png.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from attnorm.config import read_arguments
from attnorm.config.arguments import show_help, wants_help
from attnorm.config.checks import require
from attnorm.errors import UserError, exit_on_user_error
from attnorm.reporting.responses.report import Selection, write_report
from attnorm.run.trained import KEYS, load_trained


@dataclass
class ResponsesArguments:
    """What the command takes beside keys of the config."""

    checkpoint: list[str] = field(default_factory=list)  # one or two
    sites: str | None = None
    classes: str = "3"
    images: int = 5
    limit: int | None = None
    output: str | None = None
    allow: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key, value in (("images", self.images), ("limit", self.limit)):
            require(value is None or value >= 2, key, value, "at least 2")

    def selection(self) -> Selection:
        """What is looked at.

        Raises:
            UserError: fewer than two classes.
        """
        number = int(self.classes) if self.classes.isdigit() else None
        names = self.classes.split(",")
        if (len(names) if number is None else number) < 2:
            raise UserError("classes needs at least 2: between-class spread compares two.")
        chosen = names if number is None else number
        return Selection(self.sites, chosen, self.images, self.limit)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after a mistake."""
    if wants_help(arguments):
        return show_help(__doc__ or "")
    with exit_on_user_error():
        own, overrides, _ = read_arguments(arguments, ResponsesArguments, KEYS, "attnorm responses")
        paths = [Path(path) for path in own.checkpoint]
        if not 1 <= len(paths) <= 2:
            raise UserError(f"{len(paths)} checkpoints given: pass checkpoint=PATH once or twice.")
        selection = own.selection()
        models = [load_trained(path, overrides, allow=own.allow) for path in paths]
        folder = Path(own.output) if own.output is not None else paths[0].parent / "responses"
        write_report(models, folder, selection, Console(soft_wrap=True))
    return 0
