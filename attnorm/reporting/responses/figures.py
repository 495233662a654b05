"""The pictures of responses and mixtures: Figure 2, λ by component and class, driving images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from attnorm.reporting.responses.mixtures import Mixture

CLASS_COLORS = ("#3b82c4", "#d97b29", "#2f9e63", "#a259b5", "#c94f7c", "#8a7d2b", "#6b7f99")
BINS = 80
MAX_CLASSES = 30  # rows of a heat map that can be read


def figure2(
    responses: Mapping[str, Mapping[str, NDArray[np.float32]]],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
) -> Figure:
    """A unit a row, a model a column; each line is one image, its colour the class.

    Args:
        responses: by model and unit, (N, V); labels (N,) are the images' classes.
    """
    rows = max(len(units) for units in responses.values())
    figure = Figure(figsize=(4.2 * len(responses), 2.1 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, len(responses), squeeze=False)
    shown = list(dict.fromkeys(labels.tolist()))
    for column, (model, units) in enumerate(responses.items()):
        for row in range(rows):
            axes = grid[row][column]
            if row >= len(units):
                axes.set_axis_off()
                continue
            unit, values = list(units.items())[row]
            _histograms(axes, values, labels, shown)
            axes.set_title(f"{model}, {unit}", fontsize=9)
    handles = [
        matplotlib.lines.Line2D([], [], color=_color(index), label=class_names[label])
        for index, label in enumerate(shown)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(4, len(shown)), frameon=False
    )
    return figure


def _histograms(
    axes: Axes, values: NDArray[np.float32], labels: NDArray[np.int64], shown: Sequence[int]
) -> None:
    low, high = np.quantile(values, [0.001, 0.999])
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    for image, label in zip(values, labels.tolist(), strict=True):
        share = np.histogram(image, edges)[0] / image.size
        line = _color(shown.index(label))
        axes.plot(centres, np.where(share > 0, share, np.nan), color=line, lw=0.9, alpha=0.7)
    axes.set_yscale("log")


def _color(index: int) -> str:
    return CLASS_COLORS[index % len(CLASS_COLORS)]


def components(mixture: Mixture) -> Figure:
    """How each component's λ is distributed over images."""
    figure = Figure(figsize=(5.2, 3), layout="constrained")
    axes = figure.add_subplot()
    ink = matplotlib.rcParams["text.color"]
    boxes = axes.boxplot(
        list(mixture.weights.T),
        whis=(1, 99),
        showfliers=False,
        patch_artist=True,
        medianprops={"color": ink},
        whiskerprops={"color": ink},
        capprops={"color": ink},
    )
    for box in boxes["boxes"]:
        box.set(facecolor="#3b82c4", edgecolor=ink, alpha=0.8)
    axes.set_xticks(range(1, mixture.num_components + 1))
    axes.set_xticklabels([str(number) for number in range(1, mixture.num_components + 1)])
    axes.set_xlabel("component")
    axes.set_ylabel("λ")
    axes.set_title(mixture.site)
    return figure


def classes(mixture: Mixture, class_names: Sequence[str]) -> Figure:
    """Mean λ by class, relative to each component's mean over all images."""
    present, means = mixture.by_class()
    centred = means - mixture.weights.mean(0)
    # Of many classes, those that the mixture tells apart most.
    kept = np.sort(np.argsort(-np.abs(centred).max(1), kind="stable")[:MAX_CLASSES])
    height = 1.2 + 0.2 * len(kept)
    figure = Figure(figsize=(5.2, height), layout="constrained")
    axes = figure.add_subplot()
    limit = max(float(np.abs(centred).max()), 1e-9)
    image = axes.imshow(centred[kept], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(mixture.num_components))
    axes.set_xticklabels([str(number + 1) for number in range(mixture.num_components)])
    axes.set_yticks(range(len(kept)), [class_names[present[row]] for row in kept])
    axes.set_xlabel("component")
    axes.set_title(f"{mixture.site}: λ of a class − mean λ")
    figure.colorbar(image, ax=axes)
    return figure


def drivers(
    mixture: Mixture,
    pixels: Mapping[int, NDArray[np.uint8]],
    count: int,
    class_names: Sequence[str],
) -> Figure:
    """The images with the largest λ: a component a row, the strongest first."""
    ranked = mixture.drivers(count)
    height, width = next(iter(pixels.values())).shape[:2]
    above, beside = round(0.35 * height), round(0.1 * width)  # room for a line of text, a gap
    shape = (len(ranked) * (height + above), ranked.shape[1] * (width + beside))
    mosaic = np.zeros((*shape, 4), dtype=np.uint8)  # transparent where there is no image
    figure = Figure(figsize=(1.0 * count + 0.4, 1.2 * len(ranked) + 0.4), layout="constrained")
    axes = figure.add_subplot()
    for component, images in enumerate(ranked.tolist()):
        for place, number in enumerate(images):
            top, left = component * (height + above) + above, place * (width + beside)
            mosaic[top : top + height, left : left + width, :3] = pixels[number]
            mosaic[top : top + height, left : left + width, 3] = 255
            name, weight = class_names[mixture.labels[number]], mixture.weights[number, component]
            axes.text(left, top - 0.06 * height, f"{name[:12]} {weight:.2f}", fontsize=6)
    axes.imshow(mosaic, interpolation="nearest")
    axes.grid(False)
    axes.set_xticks([])
    centres = [row * (height + above) + above + height / 2 for row in range(len(ranked))]
    axes.set_yticks(centres, [str(row + 1) for row in range(len(ranked))])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_ylabel("component")
    axes.set_title(f"{mixture.site}: images that drive each component most", fontsize=9)
    return figure
