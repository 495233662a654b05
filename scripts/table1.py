"""Print the paper's Table 1 beside ours: ``python scripts/table1.py [--runs runs]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from attnorm.errors import UserError, exit_on_user_error
from attnorm.reporting.table1 import build_table, to_csv, to_json, to_markdown

FORMATS = {"markdown": to_markdown, "json": to_json, "csv": to_csv}
DEFAULT_RUNS = Path("runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=DEFAULT_RUNS, help="folder of runs (runs)")
    parser.add_argument("--format", choices=FORMATS, default="markdown")
    arguments = parser.parse_args()
    with exit_on_user_error():
        runs: Path | None = arguments.runs
        if not arguments.runs.is_dir():
            if arguments.runs != DEFAULT_RUNS:
                raise UserError(f"--runs {arguments.runs} is not a folder: give a folder of runs.")
            runs = None
        print(FORMATS[arguments.format](build_table(runs)))


if __name__ == "__main__":
    main()
