"""The report on a folder of runs: a page to read, a Markdown table, figures for a paper."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from attnorm.files import write_text
from attnorm.reporting import drawing, page, per_class
from attnorm.reporting.per_class import ClassDifferences
from attnorm.reporting.table1 import figures, formats
from attnorm.reporting.table1.paper import NOTES
from attnorm.reporting.table1.table import Row, Table, build_table

EXTREMES = 10  # classes listed at either end of a long ranking


def show_table(
    runs: Path | None,
    data: str,
    form: str,
    *,
    html: Path | None = None,
    report: Path | None = None,
    evaluate: Sequence[str] | None = None,
) -> None:
    """Print the table of the runs on ``data``, and write what else is wanted of it.

    Args:
        form: one of ``formats.FORMATS``.
        html: where the page alone goes.
        report: the folder of page, tables and figures.
        evaluate: evaluate every best checkpoint class by class first, with these overrides.

    Raises:
        UserError: a run's files cannot be read, or its data cannot be had.
    """
    table = build_table(runs, data)
    if evaluate is not None:
        per_class.evaluate_missing(table.runs, evaluate)
    sys.stdout.write(formats.FORMATS[form](table) + "\n")
    if html:
        write_html(table, html)
    if report:
        write_report(table, report)


def write_report(table: Table, folder: Path) -> None:
    """Write ``index.html``, ``table1.md``, ``.csv``, ``.json`` and ``figures/`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures").mkdir(exist_ok=True)
    classes = _class_differences(table)
    drawn = figures.report_figures(table, classes, legends=True)
    for name, (_, draw) in drawn.items():
        drawing.save(draw, folder / "figures", name)
    for suffix, form in (("md", "markdown"), ("csv", "csv"), ("json", "json")):
        write_text(folder / f"table1.{suffix}", formats.FORMATS[form](table) + "\n")
    write_html(table, folder / "index.html", classes)


def write_html(table: Table, path: Path, classes: Sequence[ClassDifferences] | None = None) -> None:
    """The page alone."""
    classes = _class_differences(table) if classes is None else classes
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_html(table, classes))


def summary(table: Table) -> str:
    """The Markdown table without its footnotes, for a terminal."""
    return formats.to_markdown(table).split("\n[", 1)[0].rstrip()


def to_html(table: Table, classes: Sequence[ClassDifferences]) -> str:
    """The whole page."""
    drawn = figures.report_figures(table, classes, legends=False)
    svgs = {name: drawing.themed(draw, name, title) for name, (title, draw) in drawn.items()}
    curves = [page.figure(svgs[name]) for name in svgs if name in figures.CURVES]
    scatters = [page.figure(svgs[name]) for name in svgs if name.startswith("error_")]
    sections = [
        page.paragraph(formats.caption(table)),
        _table(table),
        page.items(formats.remarks(table)),
    ]
    if curves:
        shown = [row for row in table.rows if row.results or row.unfinished]
        plots = f'<div class="plots">{"".join(curves)}</div>'
        sections.append(page.section("Training curves", _legend(shown), plots))
    if scatters:
        text = "Arrows lead from BN to AN. Bars are standard deviations over seeds."
        plots = f'<div class="plots">{"".join(scatters)}</div>'
        sections.append(page.section("Error, size and speed", page.paragraph(text, "dim"), plots))
    sections.append(page.section("Class by class", *_classes(table, classes, svgs)))
    notes = "".join(f"<p><b>[{key}]</b> {page.escape(text)}</p>" for key, text in NOTES.items())
    sections.append(f"<footer><h2>Notes</h2>{notes}</footer>")
    toggles = "".join(
        f"body:has(#show-{figures.row_id(row)}:not(:checked)) .row-{figures.row_id(row)}"
        "{display:none}"
        for row in table.rows
    )
    return page.page(f"Table 1 on {table.data}", sections, toggles)


def _table(table: Table) -> str:
    heads = formats.columns(table)
    rows = [formats.cells(table, row) for row in table.rows]
    column = heads.index("top-1 − BN")
    classes = []
    for row in table.rows:
        kinds = ["paper" if head == "paper" else "" for head in heads]
        first = row.to_bn[0] if row.to_bn else None
        if first is not None and first.is_clear:
            kinds[column] = "good" if first.value < 0 else "bad"
        classes.append(kinds)
    return page.table(heads, rows, classes)


def _legend(rows: Sequence[Row]) -> str:
    entries = []
    for row in rows:
        name = figures.row_id(row)
        dashes = figures.DASHES[row.paper.norm]
        line = (
            f'<svg viewBox="0 0 32 8" aria-hidden="true"><line x1="0" y1="4" x2="32" y2="4"'
            f' stroke="{figures.color(row)}" stroke-width="3" stroke-dasharray="{dashes}"/></svg>'
        )
        entries.append(
            f'<label><input type="checkbox" id="show-{name}" checked>{line}'
            f"{page.escape(row.paper.label)}</label>"
        )
    return f'<div class="legend">{"".join(entries)}</div>'


def _class_differences(table: Table) -> list[ClassDifferences]:
    by_norm = {(row.paper.arch, row.paper.norm): row.results for row in table.rows}
    found = []
    for (arch, norm), results in by_norm.items():
        baseline = by_norm.get((arch, "bn"), ())
        if norm == "an" and results and baseline:
            differences = per_class.class_differences(arch, results[0].members, baseline[0].members)
            if differences is not None:
                found.append(differences)
    return found


def _classes(table: Table, classes: Sequence[ClassDifferences], svgs: dict[str, str]) -> list[str]:
    done = {differences.arch for differences in classes}
    archs = dict.fromkeys(row.paper.arch for row in table.rows)
    parts = [
        page.paragraph(
            "Top-1 error of AN minus that of BN on the same architecture, by class, at each run's"
            " best epoch; negative where AN is better.",
            "dim",
        )
    ]
    plots = [page.figure(svgs[f"classes_{arch}"]) for arch in archs if arch in done]
    parts.append(f'<div class="plots">{"".join(plots)}</div>' if plots else "")
    for differences in classes:
        ranked = differences.ranked()
        if len(ranked) > 40:
            ends = [*ranked[:EXTREMES], *ranked[-EXTREMES:]]
            rows = [[name, f"{value:+.2f}".replace("-", "−")] for name, value in ends]
            parts.append(page.table([differences.arch, "AN − BN"], rows))
    missing = [arch for arch in archs if arch not in done]
    if missing:
        parts.append(
            page.paragraph(
                f"Not shown: {', '.join(missing)} (needs finished AN and BN runs whose best.pt was"
                " evaluated class by class: --per-class).",
                "dim",
            )
        )
    return parts
