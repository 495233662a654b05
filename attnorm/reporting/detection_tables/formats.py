"""Tables 2, 3 and 4 as Markdown, CSV and JSON: one list of columns, written three ways."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from attnorm.reporting import markdown
from attnorm.reporting.cells import joined, no_common_speed, number, sign, signed, spread, state
from attnorm.reporting.detection_tables.paper import METRICS, PaperRow, notes_of, rows_of
from attnorm.reporting.detection_tables.table import TASK, Result, Row, Table

DIGITS = 1  # of AP in percent

COMPARED = ("box_AP", "mask_AP")  # those that have columns "release" and "− BN"


def heading(metric: str) -> str:
    """``mask AP50`` for ``mask_AP50``."""
    return metric.replace("_", " ")


def columns(table: Table) -> list[str]:
    """The headings; "paper" and "release" belong to the column before them."""
    heads = ["model", "head", "params (M)", "release"]
    for metric in METRICS:
        heads += [heading(metric), "paper", *(["release"] if metric in COMPARED else [])]
    for metric in COMPARED:
        heads += [f"{heading(metric)} − BN", "paper"]
    hours = "GPU hours" if table.on_coco else "process hours"
    return [*heads, "img/s", hours, "runs", "notes"]


def cells(row: Row) -> list[str]:
    """One line of the table; results of several recipes share a cell."""
    released = row.paper.released
    texts = [row.paper.label, row.paper.head, f"{row.parameters / 1e6:.2f}"]
    texts.append(released.parameters_m if released else "–")
    for metric in METRICS:
        texts.append(joined(spread(r.mean(metric), r.std(metric), DIGITS) for r in row.results))
        texts.append(row.paper.printed.get(metric, "–"))
        if metric in COMPARED:
            texts.append((getattr(released, metric) if released else None) or "–")
    for metric in COMPARED:
        texts.append(joined(_to_bn(row, index, metric) for index in range(len(row.results))))
        texts.append(_paper_difference(row.paper, metric))
    texts.append(joined(number(r.images_per_second, ",.3g") for r in row.results))
    texts.append(joined(number(r.process_hours, ".3g") for r in row.results))
    texts.append(joined([*(r.runs for r in row.results), *map(state, row.unfinished)]))
    texts.append(" ".join(f"[{note}]" for note in row.paper.notes))
    return texts


def caption(table: Table) -> str:
    """What the table is about, in one sentence or three."""
    if table.on_coco:
        return f"The paper's Table {table.number} beside ours, on COCO."
    return (
        f"The rows of the paper's Table {table.number} trained on {table.data}. Our AP is of"
        f" {table.data}; the columns of paper and release, and our parameters, are of COCO."
        " What this table cannot say is which normalizer is better on COCO."
    )


def remarks(table: Table) -> list[str]:
    """Runs that failed, and those that belong to no row."""
    lines = [f"{run.folder.name} failed: {run.message}" for run in table.failed]
    lines += no_common_speed(result.members for row in table.rows for result in row.results)
    groups: dict[tuple[str, str], int] = {}
    for run in table.others:
        key = (run.setting("task.name") or "unknown task", run.setting("data.name") or "no data")
        groups[key] = groups.get(key, 0) + 1
    for (task, data), count in sorted(groups.items()):
        runs = "1 run" if count == 1 else f"{count} runs"
        if task != TASK:
            lines.append(f"{runs} of another task, {task}, on {data}.")
        elif data == table.data:
            lines.append(f"{runs} on {data} with settings of no row of Table {table.number}.")
        else:
            lines.append(f"{runs} on {data}: --data {data} shows them.")
    return lines


def to_markdown(table: Table) -> str:
    """A table for reading, its footnotes below; ours and the paper's column alternate."""
    rows = [cells(row) for row in table.rows]
    lines = [caption(table), "", markdown.table(columns(table), rows, last_left=2)]
    lines += ["", *(f"- {remark}" for remark in remarks(table))]
    lines += [f"[{key}] {text}" for key, text in notes_of(table.number).items()]
    return "\n".join(lines)


def to_csv(table: Table) -> str:
    """The same columns for a spreadsheet, the footnotes below."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads, ours = [], ""
    for head in columns(table):
        if head in ("paper", "release"):
            heads.append(f"{ours}, {head}")
        else:
            heads.append(ours := head)
    writer.writerow(heads)
    writer.writerows(cells(row) for row in table.rows)
    writer.writerows([f"[{key}]", note] for key, note in notes_of(table.number).items())
    return text.getvalue().rstrip("\n")


def to_json(table: Table) -> str:
    """Exact counts and every result, with the footnotes."""
    content = {
        "table": table.number,
        "data": table.data,
        "rows": [
            {
                "model": row.paper.label,
                "head": row.paper.head,
                "experiment": row.paper.experiment,
                "printed": row.paper.printed,
                "released": asdict(row.paper.released) if row.paper.released else None,
                "parameters": row.parameters,
                "results": [_result(row, index) for index in range(len(row.results))],
                "unfinished": [state(run) for run in row.unfinished],
                "notes": list(row.paper.notes),
            }
            for row in table.rows
        ],
        "remarks": remarks(table),
        "notes": notes_of(table.number),
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


FORMATS: Mapping[str, Callable[[Table], str]] = {
    "markdown": to_markdown,
    "json": to_json,
    "csv": to_csv,
}


def _result(row: Row, index: int) -> dict[str, Any]:
    result: Result = row.results[index]
    compared = row.to_bn[index]
    return {
        "seeds": list(result.seeds),
        "epochs": result.epochs,
        "box_head": result.box_head,
        "mean": {metric: result.mean(metric) for metric in METRICS},
        "std": {metric: result.std(metric) for metric in METRICS},
        "images_per_second": result.images_per_second,
        "process_hours": result.process_hours,
        "minus_bn": None
        if compared is None
        else {
            "same_box_head": compared.same_head,
            **{metric: asdict(value) for metric, value in compared.differences.items()},
        },
    }


def _to_bn(row: Row, index: int, metric: str) -> str:
    compared = row.to_bn[index]
    if compared is None or metric not in compared.differences:
        return "–"
    return signed(compared.differences[metric], DIGITS) + ("" if compared.same_head else " ‡")


def _paper_difference(row: PaperRow, metric: str) -> str:
    """To the table's BN row of the same backbone and detector, which comes before it."""
    baseline = next(
        other
        for other in reversed(rows_of(row.table)[: rows_of(row.table).index(row) + 1])
        if other.experiment.endswith("_bn")
    )
    if baseline == row:
        return "–"
    return sign(float(row.printed[metric]) - float(baseline.printed[metric]), DIGITS)
