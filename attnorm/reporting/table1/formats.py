"""Table 1 as Markdown, CSV and JSON: one list of columns, written three ways."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from attnorm.reporting import markdown
from attnorm.reporting.cells import joined, no_common_speed, number, sign, signed, spread, state
from attnorm.reporting.comparison import Difference
from attnorm.reporting.table1.paper import NOTES, ROWS
from attnorm.reporting.table1.table import TASK, Result, Row, Table

DIGITS = 2  # of errors in percent
COLUMNS = (
    "model",
    "params (M)",
    "paper",
    "GMAC",
    "paper FLOPs (G)",
    "top-1 error (%)",
    "paper",
    "top-5 error (%)",
    "paper",
    "top-1 − BN",
    "paper",
    "top-1 − paper",
    "img/s",
    "GPU hours",
    "runs",
    "notes",
)


def columns(table: Table) -> list[str]:
    """The headings for this table's data set."""
    on_imagenet = table.data == "imagenet"
    names = {} if on_imagenet else {"GPU hours": "process hours"}
    return [names.get(column, column) for column in _shown(table)]


def _shown(table: Table) -> list[str]:
    """The columns: those of other test sets before the speed."""
    hidden = () if table.data == "imagenet" else ("top-1 − paper",)
    shown = [column for column in COLUMNS if column not in hidden]
    place = shown.index("img/s")
    return [*shown[:place], *map(_test_column, table.other_tests), *shown[place:]]


def _test_column(test: str) -> str:
    return f"top-1 error, {test} (%)"


def _test_cell(results: Sequence[Result], test: str) -> str:
    texts = []
    for errors in (result.other_tests.get(test) for result in results):
        mean = statistics.fmean(errors) if errors else None
        std = statistics.stdev(errors) if errors and len(errors) > 1 else None
        texts.append(spread(mean, std, DIGITS))
    return joined(texts)


def cells(table: Table, row: Row) -> list[str]:
    """One line of the table; results of several recipes share a cell."""
    printed, results = row.paper.printed, row.results
    gmacs = f"{row.ours.macs / 1e9:.3f}" if row.ours.macs < 1e9 else f"{row.ours.macs / 1e9:.2f}"
    values = {
        "model": row.paper.label,
        "params (M)": f"{row.ours.parameters / 1e6:.2f}",
        "GMAC": gmacs,
        "paper FLOPs (G)": printed.paper_flops_g or "–",
        "top-1 error (%)": joined(spread(r.top1_error, r.top1_std, DIGITS) for r in results),
        "top-5 error (%)": joined(spread(r.top5_error, r.top5_std, DIGITS) for r in results),
        "top-1 − BN": joined(signed(difference, DIGITS) for difference in row.to_bn),
        "top-1 − paper": joined(signed(difference, DIGITS) for difference in row.to_paper),
        "img/s": joined(number(r.images_per_second, ",.0f") for r in results),
        "GPU hours": joined(number(r.process_hours, ".3g") for r in results),
        "runs": joined([*(r.runs for r in results), *(state(run) for run in row.unfinished)]),
        "notes": " ".join(f"[{note}]" for note in row.paper.notes),
        **{_test_column(test): _test_cell(results, test) for test in table.other_tests},
    }
    paper = iter(
        (
            printed.paper_parameters_m,
            printed.paper_top1_error,
            printed.paper_top5_error,
            _paper_difference(row),
        )
    )
    return [next(paper) if column == "paper" else values[column] for column in _shown(table)]


def caption(table: Table) -> str:
    """What the table is about, in one sentence."""
    if table.data == "imagenet":
        return "The paper's Table 1 beside ours, on ImageNet."
    return (
        f"The rows of the paper's Table 1 trained on {table.data}. Errors are of {table.data}; the"
        " paper's columns, and our parameters and GMACs (1000 classes, 224²), are of ImageNet."
        " What this table cannot say is which normalizer is better on ImageNet."
    )


def remarks(table: Table) -> list[str]:
    """Runs that failed, and those that belong to no row."""
    lines = [f"{run.folder.name} failed: {run.message}" for run in table.failed]
    lines += no_common_speed(result.members for result in table.results)
    groups: dict[tuple[str, str], int] = {}
    for run in table.others:
        key = (run.setting("task.name") or TASK, run.setting("data.name") or "unknown data")
        groups[key] = groups.get(key, 0) + 1
    for (task, data), count in sorted(groups.items()):
        runs = "1 run" if count == 1 else f"{count} runs"
        if task != TASK:
            lines.append(f"{runs} of another task, {task}, on {data}.")
        elif data == table.data:
            lines.append(f"{runs} on {data} with settings of no row (or loader=synthetic).")
        else:
            lines.append(f"{runs} on {data}: --data {data} shows them.")
    return lines


def to_markdown(table: Table) -> str:
    """A table for reading, its footnotes below; ours and the paper's column alternate."""
    rows = [cells(table, row) for row in table.rows]
    lines = [caption(table), "", markdown.table(columns(table), rows, last_left=2)]
    lines += ["", *(f"- {remark}" for remark in remarks(table))]
    lines += [f"[{key}] {text}" for key, text in NOTES.items()]
    return "\n".join(lines)


def to_csv(table: Table) -> str:
    """The same columns for a spreadsheet, the footnotes below."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = columns(table)
    for index, head in enumerate(heads):
        if head == "paper":
            heads[index] = f"{heads[index - 1]}, paper"
    writer.writerow(heads)
    writer.writerows(cells(table, row) for row in table.rows)
    writer.writerows([f"[{key}]", note] for key, note in NOTES.items())
    return text.getvalue().rstrip("\n")


def to_json(table: Table) -> str:
    """Exact counts and every result, with the footnotes."""
    content = {
        "data": table.data,
        "rows": [
            {
                **asdict(row.paper.printed),
                "model": row.paper.label,
                "arch": row.paper.arch,
                "norm": row.paper.norm,
                "parameters": row.ours.parameters,
                "macs": row.ours.macs,
                "results": [_result(row, index) for index in range(len(row.results))],
                "unfinished": [state(run) for run in row.unfinished],
                "notes": list(row.paper.notes),
            }
            for row in table.rows
        ],
        "remarks": remarks(table),
        "notes": NOTES,
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


FORMATS: Mapping[str, Callable[[Table], str]] = {
    "markdown": to_markdown,
    "json": to_json,
    "csv": to_csv,
}


def _result(row: Row, index: int) -> dict[str, Any]:
    def plain(difference: Difference | None) -> dict[str, Any] | None:
        return None if difference is None else asdict(difference)

    result: Result = row.results[index]
    return {
        **result.as_dict(),
        "top1_minus_bn": plain(row.to_bn[index]),
        "top1_minus_paper": plain(row.to_paper[index]),
    }


def _paper_difference(row: Row) -> str:
    if row.paper.norm == "bn":
        return "–"
    bn = next(r for r in ROWS if (r.arch, r.norm) == (row.paper.arch, "bn"))
    own, base = (float(r.printed.paper_top1_error) for r in (row.paper, bn))
    return sign(own - base, DIGITS)
