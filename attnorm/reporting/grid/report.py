"""The grid as a page, a Markdown table, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

from attnorm.files import write_text
from attnorm.reporting import markdown, page
from attnorm.reporting.cells import number, signed, state
from attnorm.reporting.grid import classes
from attnorm.reporting.grid.table import Cell, Table

_HEADS = (
    *("norm", "seeds", "top-1 error, %", "− bn, paired by seed", "img/s", "img/s ÷ bn", "hours"),
)


def summary(table: Table) -> str:
    """The table in Markdown, for a terminal."""
    return markdown.table([*table.axes, *_HEADS], [_cells(table, cell) for cell in table.cells])


def write_report(table: Table, folder: Path) -> None:
    """Write ``index.html``, ``grid.md``, ``grid.csv`` and ``grid.json`` into ``folder``.

    And ``classes.json``, where runs were evaluated class by class.
    """
    folder.mkdir(parents=True, exist_ok=True)
    notes = "".join(f"\n- {note}" for note in remarks(table))
    write_text(folder / "grid.md", f"{summary(table)}\n{notes}\n")
    records = [cell.as_dict() for cell in table.cells]
    write_text(folder / "grid.json", json.dumps(records, indent=2) + "\n")
    write_text(folder / "grid.csv", _csv(table))
    by_class = classes.class_tables(table)
    if by_class:
        write_text(folder / "classes.json", json.dumps(by_class, indent=2) + "\n")
    write_text(folder / "index.html", to_html(table, by_class))


def remarks(table: Table) -> list[str]:
    """How to read it, and what is missing."""
    notes = [
        "Errors are of the last epoch: mean ± half the 95 % interval over seeds (Student's t).",
        "The difference to batch norm is over the seeds that both have, with its 95 % interval.",
    ]
    if any(cell.images_per_second is None for cell in table.cells):
        notes.append("No speed where runs of a cell ran on different machines.")
    notes += [f"{run.folder.name} failed: {run.message}" for run in table.failed]
    notes += [f"{run.folder.name}: {state(run)}" for run in table.unfinished]
    return notes


def to_html(table: Table, by_class: Mapping[str, classes.Rows]) -> str:
    """The whole page."""
    rows = [_cells(table, cell) for cell in table.cells]
    heads = [*table.axes, *_HEADS]
    column = heads.index(_HEADS[3])
    kinds_of_rows = []
    for cell in table.cells:
        kinds = [""] * len(heads)
        if cell.to_bn is not None and cell.to_bn.is_clear:
            kinds[column] = "good" if cell.to_bn.value < 0 else "bad"
        kinds_of_rows.append(kinds)
    per_seed = [[*cell.label.values(), cell.norm, _errors(cell)] for cell in table.cells]
    sections = [
        page.table(heads, rows, kinds_of_rows),
        page.items(remarks(table)),
        page.section("Every seed", page.table([*table.axes, "norm", "seed: error, %"], per_seed)),
        classes.to_html(by_class),
    ]
    return page.page(f"Grid of {table.runs.name}", sections)


def _cells(table: Table, cell: Cell) -> list[str]:
    margin = f" ± {cell.margin:.2f}" if cell.margin is not None else ""
    return [
        *(cell.label[axis] for axis in table.axes),
        cell.norm,
        str(len(cell.seeds)),
        f"{cell.error:.2f}{margin}",
        signed(cell.to_bn, 2),
        number(cell.images_per_second, ",.0f"),
        number(cell.speed_to_bn, ".2f"),
        number(cell.process_hours, ".2f"),
    ]


def _errors(cell: Cell) -> str:
    return ", ".join(f"{seed}: {error:.2f}" for seed, error in sorted(cell.errors().items()))


def _csv(table: Table) -> str:
    output = io.StringIO()
    records = [cell.as_dict() for cell in table.cells]
    writer = csv.writer(output, lineterminator="\n")
    if records:
        writer.writerow(records[0])
        writer.writerows(
            [" ".join(map(str, v)) if isinstance(v, list) else v for v in record.values()]
            for record in records
        )
    return output.getvalue()
