"""Filter responses of one or two checkpoints (paper, Figure 2), and AN's mixture weights.

  python scripts/responses.py checkpoint=RUN/best.pt [checkpoint=OTHER/best.pt] [key=value ...]

  checkpoint=PATH       a last.pt or best.pt; give two to see AN beside BN, on the same images
  sites=PATTERN         whole module names, such as 'layer4\\.[012]' (default: last unit per stage)
  classes=3, classes=a,b  the first so many classes, or these (default: 3)
  images=5              validation images of each class
  limit=N               images for the mixture weights (default: the whole validation set)
  output=FOLDER         default: responses/ beside the first checkpoint
  data=NAME data.KEY=, loader=, batch_size=, precision=, device=   as in eval.py

Writes index.html, spread.md, spread.json, mixtures.md and figures/*.svg, *.png.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from attnorm.errors import UserError, exit_on_user_error
from attnorm.reporting import drawing, page, response_figures
from attnorm.reporting.mixtures import (
    MIXTURE_HEADS,
    Mixture,
    collect_mixtures,
    fetch_pixels,
    mixture_rows,
)
from attnorm.reporting.names import readable
from attnorm.reporting.responses import (
    Spread,
    choose_units,
    collect_responses,
    sample_images,
    spread,
    spread_table,
)
from attnorm.reporting.trained import Trained, load_trained
from attnorm.tracking import write_text

DRIVERS = 6  # images shown for each component
SPREAD = (
    "Each image's responses at a unit are one distribution (all channels and places). The distance"
    " between two images is the Wasserstein-1 distance of their distributions; within is its mean"
    " over pairs of images of the same class, between over pairs of different classes. The ratio"
    " has no scale: below 1, images of a class are more alike than images of different classes,"
    " and the paper's argument is that AN's ratio is lower than BN's."
)
MIXTURES = (
    "Effective components: exp of the entropy of λ / Σλ, for an image by itself (averaged) and of"
    " the mean over images; K where all weigh the same. λ from, to: the smallest and largest mean"
    " of a component. Between classes: the share of a component's variance over images that lies"
    " between classes, averaged over components; 0 % if λ does not depend on the class."
)


@dataclass
class Options:
    checkpoints: list[Path] = field(default_factory=list)
    sites: str | None = None
    classes: list[str] | int = 3
    images: int = 5
    limit: int | None = None
    output: Path | None = None
    overrides: list[str] = field(default_factory=list)


def parse(arguments: list[str]) -> Options:
    """Raises UserError for what is not key=value, no checkpoint, or more than two."""
    options = Options()
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator:
            raise UserError(f"{argument!r} is not key=value: see python scripts/responses.py -h.")
        if key == "checkpoint":
            options.checkpoints.append(Path(value))
        elif key == "sites":
            options.sites = value
        elif key == "output":
            options.output = Path(value)
        elif key == "classes":
            options.classes = int(value) if value.isdigit() else value.split(",")
        elif key in ("images", "limit"):
            if not value.isdigit() or int(value) < 2:
                raise UserError(f"{key}={value} is not possible: it must be at least 2.")
            setattr(options, key, int(value))
        else:
            options.overrides.append(argument)
    if not 1 <= len(options.checkpoints) <= 2:
        raise UserError(
            f"{len(options.checkpoints)} checkpoints given: pass checkpoint=PATH once or twice."
        )
    if options.classes in (0, 1) or (
        not isinstance(options.classes, int) and len(options.classes) < 2
    ):
        raise UserError("classes needs at least 2: between-class spread compares two.")
    return options


class Report:
    """Figures and sections as they come, and the files they become."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        self.sections: list[str] = []

    def draw(self, name: str, title: str, drawn: Callable[[], Figure], wide: bool = False) -> str:
        """Save a figure for print, and return it for the page."""
        drawing.save(drawn, self.folder / "figures", name)
        return page.figure(drawing.themed(drawn, name, title), wide=wide)

    def write(self, title: str) -> Path:
        path = self.folder / "index.html"
        write_text(path, page.page(title, self.sections))
        return path


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def load(options: Options) -> dict[str, Trained]:
    """The models by a label that tells them apart."""
    models = [load_trained(path, options.overrides) for path in options.checkpoints]
    if len(models) == 2 and models[0].class_names != models[1].class_names:
        raise UserError("The two checkpoints were trained on different classes.")
    labels = [model.label for model in models]
    if len(set(labels)) < len(labels):
        labels = [f"{model.label} ({model.path.parent.name})" for model in models]
    return dict(zip(labels, models, strict=True))


def report_responses(report: Report, options: Options, models: dict[str, Trained]) -> str:
    """Figure 2 and the spread table; returns the latter as Markdown."""
    first = next(iter(models.values()))
    responses: dict[str, dict[str, NDArray[np.float32]]] = {}
    spreads: dict[str, dict[str, Spread]] = {}
    for label, trained in models.items():
        images, labels = sample_images(trained, options.classes, options.images)
        units = choose_units(trained.model, options.sites)
        responses[label] = collect_responses(trained, images, units)
        spreads[label] = {u: spread(values, labels) for u, values in responses[label].items()}
    heads, rows = spread_table(spreads)
    names = [readable(name) for name in first.class_names]
    drawn = partial(response_figures.figure2, responses, labels, names)
    title = "Filter responses, image by image"
    report.sections.append(
        page.section(
            title,
            page.paragraph("Each line is one image; its colour is the class.", "dim"),
            report.draw("figure2", title, drawn, wide=True),
        )
    )
    report.sections.append(
        page.section("Spread", page.table(heads, rows), page.paragraph(SPREAD, "dim"))
    )
    text = markdown(heads, rows)
    write_text(report.folder / "spread.md", f"{text}\n{SPREAD}\n")
    content = {
        label: {unit: {**asdict(s), "ratio": s.ratio} for unit, s in by_unit.items()}
        for label, by_unit in spreads.items()
    }
    write_text(report.folder / "spread.json", json.dumps(content, indent=2) + "\n")
    return text


def report_mixtures(report: Report, label: str, trained: Trained, limit: int | None) -> str:
    """λ of one model, if it has any; returns the table as Markdown."""
    mixtures = collect_mixtures(trained, limit)
    if not mixtures:
        return ""
    heads, rows = list(MIXTURE_HEADS), mixture_rows(mixtures)
    text = markdown(heads, rows)
    write_text(report.folder / f"mixtures_{_slug(label)}.md", f"{text}\n{MIXTURES}\n")
    parts = [page.table(heads, rows), page.paragraph(MIXTURES, "dim")]
    shown = _last_of_each_stage(trained, mixtures)
    wanted = {int(n) for mixture in shown for n in mixture.drivers(DRIVERS).flat}
    pixels = fetch_pixels(trained, wanted)
    names = [readable(name) for name in trained.class_names]
    for mixture in shown:
        slug = f"{_slug(label)}_{_slug(mixture.site)}"
        plots = [
            report.draw(
                f"lambda_{slug}",
                f"{mixture.site}: λ by component",
                partial(response_figures.components, mixture),
            ),
            report.draw(
                f"classes_{slug}",
                f"{mixture.site}: λ by class",
                partial(response_figures.classes, mixture, names),
            ),
            report.draw(
                f"drivers_{slug}",
                f"{mixture.site}: images that drive each component most",
                partial(response_figures.drivers, mixture, pixels, DRIVERS, names),
            ),
        ]
        parts.append(f'<div class="plots">{"".join(plots)}</div>')
    report.sections.append(page.section(f"Mixture weights λ: {label}", *parts))
    return text


def _last_of_each_stage(trained: Trained, mixtures: list[Mixture]) -> list[Mixture]:
    modules = dict(trained.model.named_modules())
    last = {getattr(modules[mixture.site], "stage", None): mixture for mixture in mixtures}
    return list(last.values())


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in text)


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    with exit_on_user_error():
        options = parse(arguments)
        models = load(options)
        report = Report(options.output or options.checkpoints[0].parent / "responses")
        print(report_responses(report, options, models))
        for label, trained in models.items():
            text = report_mixtures(report, label, trained, options.limit)
            if text:
                print(f"{label}\n{text}")
        print(f"written to {report.write('Filter responses: ' + ' and '.join(models))}")


if __name__ == "__main__":
    main(sys.argv[1:])
