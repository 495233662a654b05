"""A grid class by class: batch norm's errors, and how far each normalizer is from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attnorm.reporting import page, per_class
from attnorm.reporting.cells import sign
from attnorm.reporting.grid.table import BASELINE, Cell, Table, is_compared_with

Rows = list[dict[str, str | float]]


def class_tables(table: Table) -> dict[str, Rows]:
    """By what batch norm was trained with: a line per class, means over seeds, in percent.

    A cell has a column where all its runs' last checkpoints were evaluated class by class.
    """
    found: dict[str, Rows] = {}
    for bn in table.cells:
        errors = per_class.mean_by_class(bn.runs, "final") if bn.norm == BASELINE else None
        if errors is None:
            continue
        others = {
            _column(cell, bn): means
            for cell in table.cells
            if is_compared_with(cell, bn)
            and (means := per_class.mean_by_class(cell.runs, "final")) is not None
        }
        found[_title(bn)] = [
            {
                "class": name,
                BASELINE: error,
                **{column: means[name] - error for column, means in others.items()},
            }
            for name, error in errors.items()
            if all(name in means for means in others.values())
        ]
    return found


def to_html(tables: Mapping[str, Rows]) -> str:
    """A section of the report's page; empty where nothing was evaluated class by class."""
    parts = []
    for title, rows in tables.items():
        heads = list(rows[0])
        cells = [[str(row["class"]), *_texts(row, heads[1:])] for row in rows]
        parts.append(page.section(title, page.table(heads, cells)))
    if not parts:
        return ""
    note = "Top-1 errors of the last epoch by class, %, mean over seeds; differences in points."
    return page.section("Class by class", page.paragraph(note, "dim") + "".join(parts))


def _texts(row: Mapping[str, str | float], columns: Sequence[str]) -> list[str]:
    (bn, *others) = (float(row[column]) for column in columns)
    return [f"{bn:.1f}", *(sign(value, 1) for value in others)]


def _title(bn: Cell) -> str:
    return ", ".join(f"{axis}={value}" for axis, value in bn.label.items()) or "all"


def _column(cell: Cell, bn: Cell) -> str:
    """Such as ``an − bn``, with what else tells it from other cells of its normalizer."""
    other = [value for axis, value in cell.label.items() if value != bn.label[axis]]
    return " ".join([cell.norm, *other, "− bn"])
