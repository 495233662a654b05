"""Draw pictures of runs: curves, error against size, and the README's filter responses.

  python scripts/draw_results.py [RUNS] [FOLDER]      runs/table1-small  docs/images

Needs what make table1-small leaves behind; the filter responses are those of ResNet-50.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from attnorm.errors import UserError, exit_on_user_error
from attnorm.reporting import drawing
from attnorm.reporting.responses.figures import figure2
from attnorm.reporting.responses.spread import choose_units, collect_responses, sample_images
from attnorm.reporting.table1.figures import report_figures
from attnorm.reporting.table1.table import build_table
from attnorm.run.trained import load_trained

ROOT = Path(__file__).resolve().parent.parent
WANTED = {"val_top1": "curves", "error_parameters": "error_parameters"}


def draw_curves(runs: Path, folder: Path) -> None:
    """What the report shows, of every row."""
    drawn = report_figures(build_table(runs, "digits"), [], legends=True)
    for name, file in WANTED.items():
        if name not in drawn:
            raise UserError(f"{runs} has no finished run on digits: make table1-small first.")
        drawing.save(drawn[name][1], folder, file)


def draw_responses(runs: Path, folder: Path) -> None:
    """Figure 2 for the last two stages of ResNet-50, AN beside BN."""
    responses = {}
    for norm in ("an", "bn"):
        trained = load_trained(runs / f"resnet50_{norm}_seed0" / "best.pt")
        images, labels = sample_images(trained, 3, 5)
        units = choose_units(trained.model)[2:]
        responses[f"ResNet-50-{norm.upper()}"] = collect_responses(trained, images, units)
    names = [f"digit {name}" for name in trained.class_names]
    drawn = partial(figure2, responses, labels, names)
    drawing.save(drawn, folder, "figure2")


def main() -> None:
    arguments = [Path(argument) for argument in sys.argv[1:]]
    defaults = [Path("runs/table1-small"), ROOT / "docs" / "images"]
    runs, folder = [*arguments, *defaults[len(arguments) :]]
    folder.mkdir(parents=True, exist_ok=True)
    with exit_on_user_error():
        draw_curves(runs, folder)
        draw_responses(runs, folder)


if __name__ == "__main__":
    main()
