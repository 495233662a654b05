"""Write the measured tables of README and docs from the records in ``docs/measured/``.

    python scripts/docs_tables.py            write them
    python scripts/docs_tables.py --check    exit with 1 if a page shows other figures

A page names a record between two comments, ``<!-- measured: NAME -->`` and ``<!-- end -->``; what
stands between them is replaced. A record ``NAME.json`` is what ``python -m benchmarks … --json``
wrote, the ``grid.json`` or ``classes.json`` of ``attnorm run-table``'s report, or the
``loaders.json`` of ``attnorm eval loaders=all``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks is not installed

from attnorm.reporting import markdown
from attnorm.reporting.cells import sign
from benchmarks.measure import as_markdown

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
RECORDS = ROOT / "docs" / "measured"
_BLOCK = re.compile(r"<!-- measured: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


def filled(page: str) -> str:
    """The page with its tables made anew."""
    return _BLOCK.sub(_block, page)


def _block(found: re.Match[str]) -> str:
    name = found.group(1)
    record = json.loads((RECORDS / f"{name}.json").read_text())
    if isinstance(record, list):
        text = _grid(record)
    elif "command" in record:
        text = as_markdown(record).strip()
    elif "checkpoints" in record:
        text = _loaders(record["checkpoints"])
    else:
        text = "\n\n".join(map(_classes, record.values()))
    return f"<!-- measured: {name} -->\n\n{text}\n\n<!-- end -->"


def _grid(cells: Sequence[Mapping[str, Any]]) -> str:
    """A line per cell: its error with every seed's, and its difference to batch norm.

    No speeds: runs of a grid may share their machine with others.
    """
    known = ("norm", "seeds", "top1_errors", "top1_error", "top1_margin", "to_bn", "to_bn_margin")
    aside = (*known, "images_per_second", "speed_to_bn", "process_hours")
    axes = [key for key in cells[0] if key not in aside]
    heads = [*axes, "norm", "top-1 error, %", "− bn, by seed", "every seed"]
    rows = [
        [
            *(_setting(cell[axis]) for axis in axes),
            cell["norm"],
            _with_margin(f"{cell['top1_error']:.2f}", cell["top1_margin"]),
            ""
            if cell["to_bn"] is None
            else _with_margin(sign(cell["to_bn"], 2), cell["to_bn_margin"]),
            " ".join(f"{error:.2f}" for error in cell["top1_errors"]),
        ]
        for cell in cells
    ]
    return markdown.table(heads, rows)


def _setting(value: object) -> str:
    """A config's value: nothing where it is not set, a pattern as code."""
    text = "" if value in (None, "None") else str(value)
    return f"`{text}`" if "\\" in text else text


def _loaders(checkpoints: Sequence[Mapping[str, Any]]) -> str:
    """A line per loader, over the decisions on all images by all checkpoints trained with one."""
    lines = []
    for trained_with in dict.fromkeys(entry["trained_with"] for entry in checkpoints):
        members = [entry for entry in checkpoints if entry["trained_with"] == trained_with]
        images = sum(entry["images"] for entry in members)
        first = _mean(members, 0, "top1_error")
        for place, result in enumerate(members[0]["loaders"]):
            error = _mean(members, place, "top1_error")
            other = _mean(members, place, "other_predictions")
            pixels = _mean(members, place, "pixel_difference")
            cells = [f"{images:,}", f"{error:.2f}", sign(error - first, 2), f"{other:.2f}"]
            trained = trained_with if place == 0 else ""
            lines.append([trained, result["loader"], *cells, f"{pixels:.3f}"])
    heads = ["trained with", "evaluated by", "decisions", "top-1 error, %", "Δ, points"]
    return markdown.table([*heads, "other predictions, %", "pixels, levels of 255"], lines)


def _mean(members: Sequence[Mapping[str, Any]], place: int, key: str) -> float:
    """Over the images of several checkpoints, of what one loader gave."""
    images = sum(entry["images"] for entry in members)
    found: float = sum(entry["loaders"][place][key] * entry["images"] for entry in members)
    return found / images


def _classes(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per class."""
    heads = list(rows[0])
    lines = [
        [row["class"], f"{row['bn']:.1f}", *(sign(row[head], 1) for head in heads[2:])]
        for row in rows
    ]
    return markdown.table(heads, lines)


def _with_margin(text: str, margin: float | None) -> str:
    return text if margin is None else f"{text} ± {margin:.2f}"


def main() -> int:
    pages = {path: path.read_text() for path in PAGES}
    changed = {path: new for path, text in pages.items() if (new := filled(text)) != text}
    if "--check" in sys.argv[1:]:
        for path in changed:
            print(f"{path} shows other figures: run python scripts/docs_tables.py")
        return int(bool(changed))
    for path, text in changed.items():
        path.write_text(text)
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
