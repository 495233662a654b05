"""``attnorm run-table`` from a checkout: ``python scripts/run_table.py --help`` explains it."""

import sys

from attnorm.__main__ import run

if __name__ == "__main__":
    run("run-table", *sys.argv[1:])
