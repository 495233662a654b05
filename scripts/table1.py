"""The paper's Table 1 beside ours: ``python scripts/table1.py [--runs runs] [--html page.html]``.

python scripts/table1.py                          the table, as Markdown
python scripts/table1.py --html report.html       the page: table, curves, classes
python scripts/table1.py --report report          the page, tables and figures for a paper
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from attnorm.errors import UserError, exit_on_user_error
from attnorm.reporting import per_class
from attnorm.reporting.formats import to_csv, to_json, to_markdown
from attnorm.reporting.report import write_html, write_report
from attnorm.reporting.table1 import build_table

FORMATS = {"markdown": to_markdown, "json": to_json, "csv": to_csv}
DEFAULT_RUNS = Path("runs")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=DEFAULT_RUNS, help="folder of runs (runs)")
    parser.add_argument("--data", default="imagenet", help="data set of the runs (imagenet)")
    parser.add_argument("--format", choices=FORMATS, default="markdown")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write one self-contained page")
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write the page, tables and figures"
    )
    parser.add_argument(
        "--per-class",
        action="store_true",
        help="first evaluate every best.pt class by class (once; a GPU helps on ImageNet)",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for --per-class: data.root=…"
    )
    return parser.parse_intermixed_args()


def main() -> None:
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with exit_on_user_error():
        runs: Path | None = arguments.runs
        if not arguments.runs.is_dir():
            if arguments.runs != DEFAULT_RUNS:
                raise UserError(f"--runs {arguments.runs} is not a folder: give a folder of runs.")
            runs = None
        table = build_table(runs, arguments.data)
        if arguments.per_class:
            results = [result for row in table.rows for result in row.results]
            per_class.evaluate_missing(results, arguments.overrides)
        print(FORMATS[arguments.format](table))
        if arguments.html:
            write_html(table, arguments.html)
        if arguments.report:
            write_report(table, arguments.report)


if __name__ == "__main__":
    main()
