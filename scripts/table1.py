"""``attnorm table1`` from a checkout: ``python scripts/table1.py --help`` explains it."""

import sys

from attnorm.__main__ import run

if __name__ == "__main__":
    run("table1", *sys.argv[1:])
