"""The figures of a report: curves of every run, precision over recall, AP against size, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnorm.detection.average_precision import RECALLS
from attnorm.reporting.detection_tables import details
from attnorm.reporting.detection_tables.details import ClassDifferences
from attnorm.reporting.detection_tables.table import Row, Table
from attnorm.reporting.drawing import Drawing
from attnorm.reporting.runs import Run

# Colour by normalizer, line by backbone or detector. Mid-tones: they show on white and on black.
COLORS = {
    "bn": "#3b82c4",
    "gn": "#8a7d2b",
    "sn": "#c94f7c",
    "an": "#d97b29",
    "an_head": "#2f9e63",
}
MARKERS = {"bn": "o", "gn": "s", "sn": "D", "an": "*", "an_head": "P"}
# Lengths of dashes and gaps, for the lines and for the page's legend.
DASHES = ("", "7 3", "2 2")

# Name: title, kind of line, key, scale of the y axis.
CURVES = {
    "train_loss": ("Training loss", "train", "loss", "log"),
    "val_box": ("Validation box AP (%)", "eval", "box_AP", "linear"),
    "val_mask": ("Validation mask AP (%)", "eval", "mask_AP", "linear"),
    "loss_rpn": ("Training loss, proposals", "train", "loss_rpn", "log"),
    "loss_class": ("Training loss, classes", "train", "loss_class", "log"),
    "loss_box": ("Training loss, boxes", "train", "loss_box", "log"),
    "loss_mask": ("Training loss, masks", "train", "loss_mask", "log"),
    "lr": ("Learning rate", "train", "lr", "linear"),
}


def row_id(row: Row) -> str:
    return row.paper.experiment.partition("/")[2]


def variant(row: Row) -> str:
    """``bn``, ``gn``, ``sn``, ``an``, or ``an_head`` for AN in the head as well."""
    return "an_head" if row.norm == row.head_norm == "an" else row.norm


def color(row: Row) -> str:
    """The row's colour in every figure."""
    return COLORS[variant(row)]


def dashes(table: Table, row: Row) -> str:
    """The row's line in every figure: solid for the table's first backbone and detector."""
    groups = list(dict.fromkeys((other.arch, other.detector) for other in table.rows))
    return DASHES[groups.index((row.arch, row.detector))]


def report_figures(
    table: Table, classes: Sequence[ClassDifferences], *, legends: bool
) -> dict[str, tuple[str, Drawing]]:
    """Name to (title, drawing) of every figure that the runs have numbers for.

    ``legends`` name the curves where the figure stands alone; the page has a legend for all.
    """
    figures: dict[str, tuple[str, Drawing]] = {}
    for name, (title, kind, key, _) in CURVES.items():
        if any(_points(run, kind, key) for row in table.rows for run in _runs(row)):
            figures[name] = (title, partial(_curve, table, name, legends))
    for kind in details.KINDS.values():
        results = [result for row in table.rows for result in row.results[:1]]
        if any(details.curve(result, kind, "AP") for result in results):
            title = f"Precision over recall, {kind}"
            figures[f"precision_{kind}"] = (title, partial(_precision, table, kind, legends))
    if any(row.results for row in table.rows):
        title = "Box AP against parameters"
        figures["parameters"] = (title, partial(_scatter, table))
    for found in classes:
        title = f"{found.row}: {found.kind} AP by class, AN − BN"
        figures[f"classes_{found.kind}_{found.row}"] = (title, partial(_class_bars, found))
    return figures


def _runs(row: Row) -> list[Run]:
    return [*(run for result in row.results for run in result.members), *row.unfinished]


def _curve(table: Table, name: str, legend: bool) -> Figure:
    title, kind, key, scale = CURVES[name]
    figure, axes = _new()
    for row in table.rows:
        curves = [(number, _points(run, kind, key)) for number, run in enumerate(_runs(row))]
        drawn = [(number, points) for number, points in curves if points]
        for number, points in drawn:
            (line,) = axes.plot(
                *zip(*points, strict=True),
                color=color(row),
                linestyle=_linestyle(dashes(table, row)),
                linewidth=1.4,
                alpha=0.9 if len(drawn) == 1 else 0.6,
                marker="." if len(points) == 1 else None,
                label=label(row) if number == drawn[0][0] else None,
            )
            line.set_gid(f"row:{row_id(row)}:{number}")
    axes.set_yscale(scale)
    if scale == "linear":
        axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    return _with_legend(figure, axes, legend)


def _points(run: Run, kind: str, key: str) -> list[tuple[float, float]]:
    lines = run.lines(kind)
    return [(_epoch(line, kind), line[key]) for line in lines if line.get(key) is not None]


def _epoch(line: Mapping[str, float], kind: str) -> float:
    if kind == "eval":
        return line["epoch"]
    return line["epoch"] - 1 + line["step_in_epoch"] / line["steps_per_epoch"]


def _precision(table: Table, kind: str, legend: bool) -> Figure:
    """Thick: mean over the ten overlaps, whose area is AP; thin: an overlap of 0.5."""
    figure, axes = _new()
    for row in table.rows:
        for result in row.results[:1]:
            for number, (title, width) in enumerate((("AP", 1.6), ("AP50", 0.8))):
                found = details.curve(result, kind, title)
                if found is None:
                    continue
                (line,) = axes.plot(
                    RECALLS,
                    found,
                    color=color(row),
                    linestyle=_linestyle(dashes(table, row)),
                    linewidth=width,
                    label=label(row) if number == 0 else None,
                )
                line.set_gid(f"row:{row_id(row)}:{kind}{number}")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 102)
    axes.set_title(f"Precision (%) over recall, {kind}")
    axes.set_xlabel("recall")
    return _with_legend(figure, axes, legend)


def _scatter(table: Table) -> Figure:
    figure, axes = _new()
    baselines: dict[tuple[str, str], tuple[float, float]] = {}
    for row in table.rows:
        for result in row.results[:1]:
            value = result.mean("box_AP")
            if value is None:
                continue
            place = (row.parameters / 1e6, value)
            axes.errorbar(
                *place,
                yerr=result.std("box_AP"),
                fmt=MARKERS[variant(row)],
                color=color(row),
                markersize=8,
                capsize=3,
            )
            axes.annotate(label(row), place, (6, 5), textcoords="offset points", fontsize=7)
            group = (row.arch, row.detector)
            if row.is_baseline:
                baselines[group] = place
            elif row.norm == "an" and group in baselines:
                arrow = {"arrowstyle": "->", "color": color(row), "alpha": 0.6}
                axes.annotate("", place, baselines[group], arrowprops=arrow)
    axes.margins(x=0.25, y=0.15)
    axes.set_xlabel("parameters (M)")
    axes.set_ylabel("box AP (%)")
    return figure


def _class_bars(found: ClassDifferences) -> Figure:
    figure, axes = _new()
    ranked = found.ranked()
    values = [value for _, value in ranked]
    colors = ["#2f9e63" if value > 0 else "#c2571a" for value in values]
    axes.bar(range(len(values)), values, color=colors, width=0.8 if len(values) <= 40 else 1.0)
    axes.axhline(0, color=matplotlib.rcParams["text.color"], linewidth=0.8)
    if len(values) <= 40:
        axes.set_xticks(range(len(values)), [name for name, _ in ranked], rotation=60, fontsize=8)
    else:
        axes.set_xlabel(f"{len(values)} classes, from most helped to most hurt")
    axes.set_ylabel(f"AN − BN, {found.kind} AP (points)")
    axes.set_title(found.row, fontsize=10)
    return figure


def label(row: Row) -> str:
    head = "" if row.paper.head == "–" else f", head {row.paper.head}"
    return row.paper.label + head


def _linestyle(lengths: str) -> str | tuple[int, tuple[float, ...]]:
    return (0, tuple(float(length) for length in lengths.split())) if lengths else "-"


def _with_legend(figure: Figure, axes: Axes, legend: bool) -> Figure:
    if legend and axes.lines:
        figure.legend(loc="outside right upper", fontsize=7, frameon=False)
        figure.set_size_inches(7.6, 3.5)
    return figure


def _new(width: float = 5.2, height: float = 3.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()
