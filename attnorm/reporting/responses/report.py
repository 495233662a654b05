"""The report on one or two trained models: Figure 2, the spread of responses, AN's mixtures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console

from attnorm.data.names import readable
from attnorm.errors import UserError
from attnorm.files import write_text
from attnorm.reporting import drawing, markdown, page
from attnorm.reporting.responses import figures
from attnorm.reporting.responses.mixtures import (
    MIXTURE_HEADS,
    Mixture,
    collect_mixtures,
    fetch_pixels,
    mixture_rows,
)
from attnorm.reporting.responses.spread import (
    Spread,
    choose_units,
    collect_responses,
    sample_images,
    spread,
    spread_table,
)
from attnorm.run.trained import Trained

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


@dataclass(frozen=True)
class Selection:
    """What is looked at.

    Attributes:
        sites: pattern of whole module names; None for the last unit of every stage.
        classes: names, or the first so many.
        images: of each class.
        limit: images for the mixture weights; None for the whole validation set.
    """

    sites: str | None = None
    classes: Sequence[str] | int = 3
    images: int = 5
    limit: int | None = None


class _Report:
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


def write_report(
    models: Sequence[Trained], folder: Path, selection: Selection, console: Console
) -> None:
    """Write page, tables and figures on one or two models into ``folder``, and print the tables.

    Raises:
        UserError: the models know different classes, or ``selection`` is of nothing there is.
    """
    named = _named(models)
    report = _Report(folder)
    console.out(_responses(report, selection, named), "", sep="\n", highlight=False)
    for label, trained in named.items():
        text = _mixtures(report, label, trained, selection.limit)
        if text:
            console.out(label, text, "", sep="\n", highlight=False)
    path = report.write("Filter responses: " + " and ".join(named))
    console.out(f"written to {path}", highlight=False)


def _named(models: Sequence[Trained]) -> dict[str, Trained]:
    """The models by a label that tells them apart."""
    if any(model.class_names != models[0].class_names for model in models):
        raise UserError("The two checkpoints were trained on different classes.")
    labels = [model.label for model in models]
    if len(set(labels)) < len(labels):
        labels = [f"{model.label} ({model.path.parent.name})" for model in models]
    return dict(zip(labels, models, strict=True))


def _responses(report: _Report, selection: Selection, models: Mapping[str, Trained]) -> str:
    """Figure 2 and the spread table; returns the latter as Markdown."""
    first = next(iter(models.values()))
    responses: dict[str, dict[str, NDArray[np.float32]]] = {}
    spreads: dict[str, dict[str, Spread]] = {}
    for label, trained in models.items():
        images, labels = sample_images(trained, selection.classes, selection.images)
        units = choose_units(trained.model, selection.sites)
        responses[label] = collect_responses(trained, images, units)
        spreads[label] = {u: spread(values, labels) for u, values in responses[label].items()}
    heads, rows = spread_table(spreads)
    names = [readable(name) for name in first.class_names]
    drawn = partial(figures.figure2, responses, labels, names)
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
    text = markdown.table(heads, rows)
    write_text(report.folder / "spread.md", f"{text}\n\n{SPREAD}\n")
    content = {
        label: {unit: {**asdict(s), "ratio": s.ratio} for unit, s in by_unit.items()}
        for label, by_unit in spreads.items()
    }
    write_text(report.folder / "spread.json", json.dumps(content, indent=2) + "\n")
    return text


def _mixtures(report: _Report, label: str, trained: Trained, limit: int | None) -> str:
    """λ of one model, if it has any; returns the table as Markdown."""
    mixtures = collect_mixtures(trained, limit)
    if not mixtures:
        return ""
    heads, rows = list(MIXTURE_HEADS), mixture_rows(mixtures)
    text = markdown.table(heads, rows)
    write_text(report.folder / f"mixtures_{_slug(label)}.md", f"{text}\n\n{MIXTURES}\n")
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
                partial(figures.components, mixture),
            ),
            report.draw(
                f"classes_{slug}",
                f"{mixture.site}: λ by class",
                partial(figures.classes, mixture, names),
            ),
            report.draw(
                f"drivers_{slug}",
                f"{mixture.site}: images that drive each component most",
                partial(figures.drivers, mixture, pixels, DRIVERS, names),
            ),
        ]
        parts.append(f'<div class="plots">{"".join(plots)}</div>')
    report.sections.append(page.section(f"Mixture weights λ: {label}", *parts))
    return text


def _last_of_each_stage(trained: Trained, mixtures: Sequence[Mixture]) -> list[Mixture]:
    modules = dict(trained.model.named_modules())
    last = {getattr(modules[mixture.site], "stage", None): mixture for mixture in mixtures}
    return list(last.values())


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in text)
