"""``attnorm run-table1`` from a checkout: ``python scripts/run_table1.py --help`` explains it."""

import sys

from attnorm.commands.run_table1 import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
