"""Train a grid of runs, and compare each normalizer with batch norm under the same recipe.

  attnorm run-table norm=bn,an recipe=paper,rsb_a3 seed=0,1,2 arch=resnet50 epochs=30 \\
      data=folder data.root=/data/photos --runs runs/grid
  attnorm run-table --runs runs/grid --report     the table of what is there, without training
  attnorm run-table --runs runs/grid --report --per-class      class by class, too

Values with commas are the grid's axes; what has one value goes to every run. Start it again after
an interruption: finished runs are kept, a half-finished one continues, one that failed is tried
again. Several machines that see the folder share the runs: start the same command on each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attnorm.errors import UserError, exit_on_user_error
from attnorm.reporting import per_class
from attnorm.reporting.grid.plan import Grid, show_commands, train_grid
from attnorm.reporting.grid.report import summary, write_report
from attnorm.reporting.grid.table import build_table


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; argparse ends the program after a mistake."""
    parser = argparse.ArgumentParser(
        prog="attnorm run-table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/grid"), help="folder (runs/grid)")
    parser.add_argument("--nproc-per-node", type=int, default=1, help="processes of a run (1)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    parser.add_argument("--report", action="store_true", help="write the report only")
    parser.add_argument(
        "--per-class",
        action="store_true",
        help="with --report: first evaluate every last.pt class by class (once); takes data.root=…",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value[,value]")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 all finished, 1 some failed, 2 a mistake, 75 interrupted."""
    options = parse(arguments)
    with exit_on_user_error():
        if options.per_class and not options.report:
            raise UserError("--per-class goes with --report, after the training.")
        if options.report:
            table = build_table(options.runs)
            if options.per_class:
                runs = (run for cell in table.cells for run in cell.runs)
                per_class.evaluate_missing(runs, options.overrides, "final")
            write_report(table, options.runs / "report")
            sys.stdout.write(summary(table) + "\n")
            return 0
        grid = Grid.read(options.overrides, options.runs, options.nproc_per_node)
        return show_commands(grid) if options.dry_run else train_grid(grid)
    return 0
