"""Train every row of Table 1, one run after another, and write the report.

  attnorm run-table1                            the scaled-down table, on built-in digits
  attnorm run-table1 --data imagenet --data-root /data/imagenet [--nproc-per-node 8]

Start it again after an interruption: finished runs are kept, a half-finished one continues, one
that failed is tried again. Further key=value arguments go to every run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from attnorm.errors import exit_on_user_error
from attnorm.reporting.table1.queue import (
    ALL_ROWS,
    DEFAULT_RUNS,
    TableRuns,
    show_commands,
    train_table,
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; argparse ends the program after a mistake."""
    parser = argparse.ArgumentParser(
        prog="attnorm run-table1",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", choices=tuple(DEFAULT_RUNS), default="digits")
    parser.add_argument("--data-root", type=Path, help="folder with train/ and val/ of ImageNet")
    parser.add_argument("--runs", type=Path, help="folder of the runs (runs/table1[-small])")
    parser.add_argument("--seeds", type=int, default=1, help="runs per row (1)")
    parser.add_argument(
        "--nproc-per-node",
        type=int,
        help="processes, one per GPU; the global batch stays the paper's (4, for SN 8; digits 1)",
    )
    parser.add_argument("--rows", default=",".join(ALL_ROWS), help="some of: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 all finished, 1 some failed, 2 a mistake, 75 interrupted."""
    options = parse(arguments)
    with exit_on_user_error():
        wanted = TableRuns(
            options.data,
            options.runs or DEFAULT_RUNS[options.data],
            options.data_root,
            options.rows.split(","),
            options.seeds,
            options.nproc_per_node,
            options.overrides,
        )
        return show_commands(wanted) if options.dry_run else train_table(wanted)
