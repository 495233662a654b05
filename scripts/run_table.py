"""``attnorm run-table`` from a checkout: ``python scripts/run_table.py --help`` explains it."""

import sys

from attnorm.commands.run_table import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
