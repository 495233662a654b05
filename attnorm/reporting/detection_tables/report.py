"""The report on a folder of detectors: a page to read, a Markdown table, figures for a paper."""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnorm.files import write_text
from attnorm.reporting import drawing, page
from attnorm.reporting.detection_tables import details, figures, formats
from attnorm.reporting.detection_tables.details import ClassDifferences
from attnorm.reporting.detection_tables.paper import TITLES, notes_of
from attnorm.reporting.detection_tables.table import Result, Row, Table, build_table

EXTREMES = 10  # classes listed at either end of a long ranking


def show_table(
    number: int,
    runs: Path | None,
    data: str,
    form: str,
    *,
    html: Path | None = None,
    report: Path | None = None,
    evaluate: Sequence[str] | None = None,
) -> None:
    """Print Table ``number`` of the runs on ``data``, and write what else is wanted of it.

    Args:
        form: one of ``formats.FORMATS``.
        html: where the page alone goes.
        report: the folder of page, tables and figures.
        evaluate: evaluate every best checkpoint in detail first, with these overrides.

    Raises:
        UserError: a run's files cannot be read, or its data cannot be had.
    """
    table = build_table(number, runs, data)
    if evaluate is not None:
        # Loaders and networks are of no use to those who only read.
        from attnorm.reporting.detection_tables import examine

        results = [result for row in table.rows for result in row.results]
        examine.evaluate_missing(results, evaluate)
    sys.stdout.write(formats.FORMATS[form](table) + "\n")
    if html:
        write_html(table, html)
    if report:
        write_report(table, report)


def write_report(table: Table, folder: Path) -> None:
    """Write ``index.html``, ``tableN.md``, ``.csv``, ``.json`` and ``figures/`` into ``folder``."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name, (_, draw) in figures.report_figures(table, _classes(table), legends=True).items():
        drawing.save(draw, folder / "figures", name)
    for suffix, form in (("md", "markdown"), ("csv", "csv"), ("json", "json")):
        write_text(folder / f"table{table.number}.{suffix}", formats.FORMATS[form](table) + "\n")
    write_html(table, folder / "index.html")


def write_html(table: Table, path: Path) -> None:
    """The page alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_html(table))


def to_html(table: Table) -> str:
    """The whole page."""
    classes = _classes(table)
    drawn = figures.report_figures(table, classes, legends=False)
    svgs = {name: drawing.themed(draw, name, title) for name, (title, draw) in drawn.items()}
    shown = [row for row in table.rows if row.results or row.unfinished]
    sections = [
        page.paragraph(formats.caption(table)),
        _table(table),
        page.items(formats.remarks(table)),
    ]
    curves = [page.figure(svgs[name]) for name in svgs if name in figures.CURVES]
    if curves:
        sections.append(page.section("Training curves", _legend(table, shown), _plots(curves)))
    precision = [page.figure(svgs[name]) for name in svgs if name.startswith("precision_")]
    if precision:
        text = (
            "Means over the classes and the seeds, at the best epoch: thick, over the overlaps"
            " from 0.5 to 0.95, so that the area below is AP; thin, at an overlap of 0.5."
        )
        parts = (page.paragraph(text, "dim"), _plots(precision))
        sections.append(page.section("Precision over recall", *parts))
    if "parameters" in svgs:
        text = "Arrows lead from BN to AN. Bars are standard deviations over seeds."
        parts = (page.paragraph(text, "dim"), _plots([page.figure(svgs["parameters"])]))
        sections.append(page.section("AP and size", *parts))
    sections.append(page.section("Class by class", *_class_parts(table, classes, svgs)))
    sections.append(page.section("Found and missed", *_examples(table)))
    notes = notes_of(table.number).items()
    texts = "".join(f"<p><b>[{key}]</b> {page.escape(text)}</p>" for key, text in notes)
    sections.append(f"<footer><h2>Notes</h2>{texts}</footer>")
    toggles = "".join(
        f"body:has(#show-{figures.row_id(row)}:not(:checked)) .row-{figures.row_id(row)}"
        "{display:none}"
        for row in table.rows
    )
    title = TITLES[table.number] if table.on_coco else f"Table {table.number} on {table.data}"
    return page.page(title, sections, toggles)


def _table(table: Table) -> str:
    heads = formats.columns(table)
    classes = []
    for row in table.rows:
        kinds = ["paper" if head in ("paper", "release") else "" for head in heads]
        compared = row.to_bn[0] if row.to_bn else None
        for metric in formats.COMPARED:
            found = compared.differences.get(metric) if compared else None
            if found is not None and found.is_clear:
                column = heads.index(f"{formats.heading(metric)} − BN")
                kinds[column] = "good" if found.value > 0 else "bad"
        classes.append(kinds)
    return page.table(heads, [formats.cells(row) for row in table.rows], classes)


def _plots(drawn: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(drawn)}</div>'


def _legend(table: Table, rows: Sequence[Row]) -> str:
    entries = []
    for row in rows:
        name, dashes = figures.row_id(row), figures.dashes(table, row)
        line = (
            f'<svg viewBox="0 0 32 8" aria-hidden="true"><line x1="0" y1="4" x2="32" y2="4"'
            f' stroke="{figures.color(row)}" stroke-width="3" stroke-dasharray="{dashes}"/></svg>'
        )
        entries.append(
            f'<label><input type="checkbox" id="show-{name}" checked>{line}'
            f"{page.escape(figures.label(row))}</label>"
        )
    return f'<div class="legend">{"".join(entries)}</div>'


def _classes(table: Table) -> list[ClassDifferences]:
    """Of every row with AN whose baseline was evaluated in detail too."""
    baselines = {(r.arch, r.detector): r.results for r in table.rows if r.is_baseline}
    found = []
    for row in table.rows:
        baseline = baselines.get((row.arch, row.detector), ())
        if row.norm == "an" and row.results and baseline:
            for kind in details.KINDS.values():
                name = figures.row_id(row)
                found.append(details.class_differences(name, kind, row.results[0], baseline[0]))
    return [differences for differences in found if differences is not None]


def _class_parts(
    table: Table, classes: Sequence[ClassDifferences], svgs: Mapping[str, str]
) -> list[str]:
    text = "AP of AN minus that of BN by class, at each run's best epoch; above zero AN is better."
    plots = [page.figure(svgs[f"classes_{found.kind}_{found.row}"]) for found in classes]
    parts = [page.paragraph(text, "dim"), _plots(plots) if plots else ""]
    for found in classes:
        ranked = found.ranked()
        if len(ranked) > 40:
            ends = [*ranked[:EXTREMES], *ranked[-EXTREMES:]]
            rows = [[name, f"{value:+.1f}".replace("-", "−")] for name, value in ends]
            parts.append(page.table([f"{found.row}, {found.kind} AP", "AN − BN"], rows))
    done = {found.row for found in classes}
    names = [figures.row_id(row) for row in table.rows if row.norm == "an"]
    if missing := [name for name in names if name not in done]:
        parts.append(
            page.paragraph(
                f"Not shown: {', '.join(missing)} (needs finished runs of AN and of BN whose"
                " best.pt was evaluated in detail: --per-class).",
                "dim",
            )
        )
    rows, heads = _class_table(table)
    return [*parts, page.table(heads, rows) if rows else ""]


def _class_table(table: Table) -> tuple[list[list[str]], list[str]]:
    """AP of every class, by row and kind: that of the first run evaluated in detail."""
    columns: dict[str, Mapping[str, float | None]] = {}
    for row in table.rows:
        for result in row.results[:1]:
            stored = _first_details(result)
            for kind, classes in (stored["classes"] if stored else {}).items():
                columns[f"{figures.label(row)}, {kind}"] = classes
    names = list(dict.fromkeys(name for classes in columns.values() for name in classes))
    rows = []
    for name in names:
        values = (classes.get(name) for classes in columns.values())
        rows.append([name, *("–" if value is None else f"{value:.1f}" for value in values)])
    return rows, ["class", *columns]


def _first_details(result: Result) -> Mapping[str, Any] | None:
    return next(filter(None, map(details.read, result.members)), None)


def _examples(table: Table) -> list[str]:
    """Pictures of each row's first run that has some."""
    text = (
        "First images of the validation set, by each row's best epoch: found in green, missed in"
        " red, found where nothing is in orange; crowds are grey."
    )
    parts = []
    for row in table.rows:
        runs = [run for result in row.results[:1] for run in result.members]
        paths = next(filter(None, map(details.pictures, runs)), [])
        if paths:
            drawn = [page.figure(_image(path), path.stem) for path in paths]
            parts += [f"<h3>{page.escape(figures.label(row))}</h3>", _plots(drawn)]
    if not parts:
        return [page.paragraph("None yet: --per-class draws them.", "dim")]
    return [page.paragraph(text, "dim"), *parts]


def _image(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{content}" alt="{page.escape(path.stem)}">'
