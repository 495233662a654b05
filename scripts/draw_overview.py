"""Draw ``docs/images/attentive_norm.svg``: what Attentive Normalization does to a feature map."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, SHARED, ATTENTION, AFFINE = "#24292f", "#dbe7f5", "#fbe3c8", "#d8efd9"
OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "attentive_norm.svg"


def box(axes: Axes, x: float, y: float, width: float, text: str, color: str) -> None:
    patch = FancyBboxPatch(
        (x, y - 0.42),
        width,
        0.84,
        boxstyle="round,pad=0.04,rounding_size=0.12",
        facecolor=color,
        edgecolor=INK,
        linewidth=1.1,
    )
    axes.add_patch(patch)
    axes.text(x + width / 2, y, text, ha="center", va="center", fontsize=10, color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=INK, linewidth=1.1)
    )


def draw(path: Path) -> None:
    plt.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "attnorm"})
    figure, axes = plt.subplots(figsize=(10, 3.5))
    axes.set_xlim(0, 13.2)
    axes.set_ylim(-0.9, 3.6)
    axes.axis("off")

    axes.text(0.1, 3.3, "Batch Normalization", fontsize=11, weight="bold", color=INK)
    box(axes, 0.1, 2.4, 1.3, "x\n(N, C, H, W)", "white")
    box(axes, 2.6, 2.4, 2.5, "normalize by the\nbatch: x̂ = (x − μ)/σ", SHARED)
    box(axes, 8.9, 2.4, 2.5, "γ · x̂ + β\none γ, β per channel", AFFINE)
    arrow(axes, (1.45, 2.4), (2.55, 2.4))
    arrow(axes, (5.15, 2.4), (8.85, 2.4))
    arrow(axes, (11.45, 2.4), (12.6, 2.4))

    axes.text(0.1, 1.45, "Attentive Normalization", fontsize=11, weight="bold", color=INK)
    box(axes, 0.1, 0.6, 1.3, "x\n(N, C, H, W)", "white")
    box(axes, 2.6, 0.6, 2.5, "normalize by the\nbatch: x̂ = (x − μ)/σ", SHARED)
    box(axes, 2.6, -0.4, 5.5, "average over H, W → linear → sigmoid: λ (N, K)", ATTENTION)
    box(axes, 8.9, 0.6, 2.5, "Σ λₖ (γₖ · x̂ + βₖ)\nmixture per image", AFFINE)
    arrow(axes, (1.45, 0.6), (2.55, 0.6))
    arrow(axes, (1.45, 0.35), (2.55, -0.35))
    arrow(axes, (5.15, 0.6), (8.85, 0.6))
    arrow(axes, (8.15, -0.35), (8.85, 0.3))
    arrow(axes, (11.45, 0.6), (12.6, 0.6))
    figure.savefig(path, bbox_inches="tight", facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    target.parent.mkdir(parents=True, exist_ok=True)
    draw(target)
