"""The paper's tables beside ours: attnorm table1 [--table 1|2|3|4] [--runs runs].

attnorm table1                          Table 1, as Markdown
attnorm table1 --table 2                detection with Mask R-CNN; 3: Cascade and HTC; 4: MobileNet
attnorm table1 --html report.html       the page: table, curves, classes; of detectors also pictures
attnorm table1 --report report          the page, tables and figures for a paper
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from attnorm.errors import UserError, exit_on_user_error
from attnorm.reporting.detection_tables import report as detection_tables
from attnorm.reporting.table1 import report as table1
from attnorm.reporting.table1.formats import FORMATS

DEFAULT_RUNS = Path("runs")
TABLES = (1, 2, 3, 4)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; argparse ends the program after a mistake."""
    parser = argparse.ArgumentParser(
        prog="attnorm table1",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=Path, default=DEFAULT_RUNS, help="folder of runs (runs)")
    parser.add_argument("--table", type=int, choices=TABLES, default=1, help="which (1)")
    parser.add_argument("--data", help="data set of the runs (imagenet; of tables 2 to 4, coco)")
    parser.add_argument("--format", choices=FORMATS, default="markdown")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write one self-contained page")
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write the page, tables and figures"
    )
    parser.add_argument(
        "--per-class",
        action="store_true",
        help="first evaluate every best.pt class by class (once; a GPU helps on ImageNet and COCO)",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for --per-class: data.root=…"
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after a mistake."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    wanted = {
        "html": options.html,
        "report": options.report,
        "evaluate": options.overrides if options.per_class else None,
    }
    with exit_on_user_error():
        runs = _folder(options.runs)
        if options.table == 1:
            table1.show_table(runs, options.data or "imagenet", options.format, **wanted)
        else:
            data = options.data or "coco"
            detection_tables.show_table(options.table, runs, data, options.format, **wanted)
    return 0


def _folder(runs: Path) -> Path | None:
    """None where nothing has been trained yet, which is no mistake."""
    if runs.is_dir():
        return runs
    if runs != DEFAULT_RUNS:
        raise UserError(f"--runs {runs} is not a folder: give a folder of runs.")
    return None
