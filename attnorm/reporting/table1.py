"""The paper's Table 1 beside ours: counts made here, errors from the runs that are there."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from attnorm.config import load_arch, load_norm
from attnorm.errors import UserError
from attnorm.models.complexity import Complexity, complexity
from attnorm.reporting.table1_paper import NOTES, ROWS, PaperRow

# Sections of a run's config that make its recipe: runs that differ in them are not averaged.
_RECIPE = ("data", "optim", "schedule", "train", "batch_size", "grad_accumulation", "epochs")


@dataclass(frozen=True)
class Result:
    """Errors (percent) of the runs of one row that share a recipe; std is that of a sample."""

    seeds: tuple[int, ...]
    epochs: int
    lr: float
    top1_error: float
    top1_std: float | None
    top5_error: float
    top5_std: float | None

    @property
    def runs(self) -> str:
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        return f"{seeds}, {self.epochs} epochs, lr {self.lr:g}"


@dataclass(frozen=True)
class Row:
    """One line of the table: the paper's, our counts, and our results by recipe."""

    paper: PaperRow
    ours: Complexity
    results: tuple[Result, ...]


def build_table(runs: Path | None = None) -> list[Row]:
    """The eleven rows, with results from every finished run under ``runs``.

    A run belongs to a row if its ``arch`` and ``norm`` are exactly the row's and it trained on
    ImageNet.

    Raises:
        UserError: a run's files cannot be read.
    """
    found = [] if runs is None else _finished_runs(runs)
    rows = []
    for paper in ROWS:
        arch, norm = load_arch(paper.arch), load_norm(paper.norm)
        wanted = {"arch": asdict(arch), "norm": asdict(norm)}
        mine = [
            (config, result)
            for config, result in found
            if {key: config[key] for key in wanted} == wanted
        ]
        rows.append(Row(paper, complexity(arch, norm), _by_recipe(mine)))
    return rows


def _finished_runs(folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    runs = []
    for path in sorted(folder.rglob("result.json")):
        try:
            result = json.loads(path.read_text())
            config = yaml.safe_load((path.parent / "config.yaml").read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(
                f"{path.parent} is not a whole run folder ({error}): move it out of {folder}."
            ) from error
        if result["status"] != "finished" or config["loader"]["name"] == "synthetic":
            continue
        if config["data"]["name"] == "imagenet":
            runs.append((config, result))
    return runs


def _by_recipe(
    runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> tuple[Result, ...]:
    groups: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = defaultdict(list)
    for config, result in runs:
        data = {k: v for k, v in config["data"].items() if k not in ("root", "workers")}
        recipe = {**{key: config[key] for key in _RECIPE}, "data": data}
        groups[json.dumps(recipe, sort_keys=True)].append((config, result))
    return tuple(_result(group) for group in groups.values())


def _result(group: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Result:
    top1 = [result["best"]["top1_error"] for _, result in group]
    top5 = [result["best"]["top5_error"] for _, result in group]
    config = group[0][0]
    return Result(
        seeds=tuple(sorted(run["seed"] for run, _ in group)),
        epochs=config["epochs"],
        lr=config["optim"]["lr"],
        top1_error=statistics.fmean(top1),
        top1_std=statistics.stdev(top1) if len(group) > 1 else None,
        top5_error=statistics.fmean(top5),
        top5_std=statistics.stdev(top5) if len(group) > 1 else None,
    )


def to_json(rows: Sequence[Row]) -> str:
    """Exact counts and every result, with the footnotes."""
    content = {
        "rows": [
            {
                **asdict(row.paper.printed),
                "model": row.paper.label,
                "arch": row.paper.arch,
                "norm": row.paper.norm,
                "parameters": row.ours.parameters,
                "macs": row.ours.macs,
                "results": [asdict(result) for result in row.results],
                "notes": list(row.paper.notes),
            }
            for row in rows
        ],
        "notes": NOTES,
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


_COLUMNS = (
    "model",
    "params (M)",
    "paper",
    "GMAC",
    "paper FLOPs (G)",
    "top-1 error (%)",
    "paper",
    "top-5 error (%)",
    "paper",
    "runs",
    "notes",
)


def to_markdown(rows: Sequence[Row]) -> str:
    """A table for reading, its footnotes below; ours and the paper's column alternate."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" + "|---:" * 8 + "|---|---|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    lines.append("")
    lines += [f"[{key}] {text}" for key, text in NOTES.items()]
    return "\n".join(lines)


def to_csv(rows: Sequence[Row]) -> str:
    """The same columns for a spreadsheet, the footnotes below."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = list(_COLUMNS)
    for index, column in enumerate(columns):
        if column == "paper":
            columns[index] = f"{columns[index - 1]}, paper"
    writer.writerow(columns)
    writer.writerows(_cells(row) for row in rows)
    writer.writerows([f"[{key}]", note] for key, note in NOTES.items())
    return text.getvalue().rstrip("\n")


def _cells(row: Row) -> list[str]:
    printed = row.paper.printed
    gmacs = f"{row.ours.macs / 1e9:.3f}" if row.ours.macs < 1e9 else f"{row.ours.macs / 1e9:.2f}"
    return [
        row.paper.label,
        f"{row.ours.parameters / 1e6:.2f}",
        printed.paper_parameters_m,
        gmacs,
        printed.paper_flops_g or "–",
        _joined(_spread(r.top1_error, r.top1_std) for r in row.results),
        printed.paper_top1_error,
        _joined(_spread(r.top5_error, r.top5_std) for r in row.results),
        printed.paper_top5_error,
        _joined(r.runs for r in row.results),
        " ".join(f"[{note}]" for note in row.paper.notes),
    ]


def _joined(texts: Any) -> str:
    return "; ".join(texts) or "–"


def _spread(mean: float, std: float | None) -> str:
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
