"""One drawing, two uses: themed SVG inside a page, and files on white for a paper."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

Drawing = Callable[[], Figure]
# Stand-ins that the page's own colours replace.
_INK, _GRID = "#010203", "#040506"


def _settings(ink: str, grid: str, **more: Any) -> Any:
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(inked, ink),
        "grid.color": grid,
        "grid.linewidth": 0.6,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "axes.titlesize": 10,
        **more,
    }


def themed(drawing: Drawing, name: str, title: str) -> str:
    """Inline SVG that takes its ink from the page; ids inside are unique to ``name``.

    Artists with the gid ``row:NAME:…`` get the class ``row-NAME``.
    """
    buffer = io.StringIO()
    fonts = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    with matplotlib.rc_context(_settings(_INK, _GRID, **fonts)):
        drawing().savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'id="row:(\w+):\w+"', r'class="row-\1"', svg)
    svg = re.sub(r' id="[A-Za-z][A-Za-z0-9.]*_\d+"', "", svg)  # figure_1, axes_1, …: in every file
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title, quote=True)}"', 1)


def save(drawing: Drawing, folder: Path, name: str) -> None:
    """``NAME.svg`` and ``NAME.png`` (200 dpi) on white, for a paper or a slide."""
    fonts = {"svg.fonttype": "path", "svg.hashsalt": name}
    with matplotlib.rc_context(_settings("#24292f", "#d8dee4", **fonts)):
        figure = drawing()
        figure.savefig(folder / f"{name}.png", dpi=200, facecolor="white")
        figure.savefig(folder / f"{name}.svg", facecolor="white", metadata={"Date": None})
