"""The figures of a report: curves of every run, error against size and speed, classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnorm.reporting.drawing import Drawing
from attnorm.reporting.per_class import ClassDifferences
from attnorm.reporting.runs import Run
from attnorm.reporting.table1.table import Result, Row, Table

# Colour by architecture, line by normalizer. Mid-tones: they must show on white and on black.
COLORS = {
    "resnet50": "#3b82c4",
    "resnet101": "#c2571a",
    "densenet161": "#2f9e63",
    "mobilenetv2": "#a259b5",
}
# Every normalizer of the five that ResNet-50 has gets a colour of its own.
RESNET50 = {"bn": "#3b82c4", "gn": "#8a7d2b", "sn": "#c94f7c", "se": "#6b7f99", "an": "#d97b29"}
# Lengths of dashes and gaps, for the lines and for the page's legend.
DASHES = {"bn": "", "an": "9 3", "gn": "6 2 1 2", "sn": "2 2", "se": "5 1 1 1 1 1"}
MARKERS = {"bn": "o", "an": "*", "gn": "s", "sn": "D", "se": "^"}


def color(row: Row) -> str:
    """The row's colour in every figure."""
    own = RESNET50.get(row.paper.norm) if row.paper.arch == "resnet50" else None
    return own or COLORS[row.paper.arch]


def row_id(row: Row) -> str:
    return f"{row.paper.arch}_{row.paper.norm}"


def report_figures(
    table: Table, classes: Sequence[ClassDifferences], *, legends: bool
) -> dict[str, tuple[str, Drawing]]:
    """Name to (title, drawing) of every figure that the runs have numbers for.

    ``legends`` name the curves where the figure stands alone; the page has a legend for all.
    """
    figures: dict[str, tuple[str, Drawing]] = {}
    if any(row.results or row.unfinished for row in table.rows):
        for name, (title, *_) in CURVES.items():
            figures[name] = (title, partial(_curve, table, name, legends))
    if any(row.results for row in table.rows):
        figures["error_parameters"] = (
            "Top-1 error against parameters",
            lambda: _scatter(table, lambda row, _: row.ours.parameters / 1e6, "parameters (M)"),
        )
        figures["error_throughput"] = (
            "Top-1 error against training speed",
            lambda: _scatter(table, lambda _, result: result.images_per_second, "images / s"),
        )
    for differences in classes:
        figures[f"classes_{differences.arch}"] = (
            f"{differences.arch}: AN − BN by class",
            partial(_class_bars, differences),
        )
    return figures


# Name: title, kind of line, key, scale of the y axis.
CURVES = {
    "train_loss": ("Training loss", "train", "loss", "log"),
    "val_loss": ("Validation loss", "eval", "loss", "log"),
    "val_top1": ("Validation top-1 error (%)", "eval", "top1_error", "linear"),
    "val_top5": ("Validation top-5 error (%)", "eval", "top5_error", "linear"),
    "train_top1": ("Training top-1 error (%)", "train", "top1_error", "linear"),
    "lr": ("Learning rate", "train", "lr", "linear"),
}


def _curve(table: Table, name: str, legend: bool) -> Figure:
    title, kind, key, scale = CURVES[name]
    figure, axes = _new()
    for row in table.rows:
        runs = [*(run for result in row.results for run in result.members), *row.unfinished]
        curves = [(number, _points(run, kind, key)) for number, run in enumerate(runs)]
        drawn = [(number, points) for number, points in curves if points]
        for number, points in drawn:
            (line,) = axes.plot(
                *zip(*points, strict=True),
                color=color(row),
                linestyle=_linestyle(row.paper.norm),
                linewidth=1.4,
                alpha=0.9 if len(drawn) == 1 else 0.6,
                marker="." if len(points) == 1 else None,
                label=row.paper.label if number == drawn[0][0] else None,
            )
            line.set_gid(f"row:{row_id(row)}:{number}")
    axes.set_yscale(scale)
    if scale == "linear":
        axes.set_ylim(bottom=0)
    if legend and axes.lines:
        figure.legend(loc="outside right upper", fontsize=7, frameon=False)
        figure.set_size_inches(6.8, 3.5)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    return figure


def _points(run: Run, kind: str, key: str) -> list[tuple[float, float]]:
    lines = run.lines(kind)
    return [(_epoch(line, kind), line[key]) for line in lines if line.get(key) is not None]


def _linestyle(norm: str) -> str | tuple[int, tuple[float, ...]]:
    lengths = tuple(float(length) for length in DASHES[norm].split())
    return (0, lengths) if lengths else "-"


def _epoch(line: Mapping[str, float], kind: str) -> float:
    if kind == "eval":
        return line["epoch"]
    return line["epoch"] - 1 + line["step_in_epoch"] / line["steps_per_epoch"]


def _scatter(table: Table, x: Callable[[Row, Result], float | None], label: str) -> Figure:
    figure, axes = _new()
    places: dict[str, dict[str, tuple[float, float]]] = {}
    for row in table.rows:
        for result in row.results[:1]:
            value = x(row, result)
            if value is None:
                continue
            axes.errorbar(
                value,
                result.top1_error,
                yerr=result.top1_std,
                fmt=MARKERS[row.paper.norm],
                color=color(row),
                markersize=9 if row.paper.norm == "an" else 6,
                capsize=3,
            )
            axes.annotate(
                row.paper.label.replace(" (8,32)", ""),
                (value, result.top1_error),
                xytext=(6, 5),
                textcoords="offset points",
                fontsize=7,
            )
            places.setdefault(row.paper.arch, {})[row.paper.norm] = (value, result.top1_error)
    for arch, points in places.items():
        if {"an", "bn"} <= points.keys():
            axes.annotate(
                "",
                points["an"],
                points["bn"],
                arrowprops={"arrowstyle": "->", "color": COLORS[arch], "alpha": 0.6},
            )
    axes.margins(x=0.18, y=0.15)
    axes.set_xlabel(label)
    axes.set_ylabel("top-1 error (%)")
    return figure


def _class_bars(differences: ClassDifferences) -> Figure:
    figure, axes = _new()
    ranked = differences.ranked()
    values = [value for _, value in ranked]
    colors = ["#2f9e63" if value < 0 else "#c2571a" for value in values]
    axes.bar(range(len(values)), values, color=colors, width=0.8 if len(values) <= 40 else 1.0)
    axes.axhline(0, color=matplotlib.rcParams["text.color"], linewidth=0.8)
    if len(values) <= 40:
        axes.set_xticks(range(len(values)), [name for name, _ in ranked], rotation=60, fontsize=8)
    else:
        axes.set_xlabel(f"{len(values)} classes, from most helped to most hurt")
    axes.set_ylabel("AN − BN, top-1 error (points)")
    axes.set_title(differences.arch, fontsize=10)
    return figure


def _new(width: float = 5.2, height: float = 3.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()
