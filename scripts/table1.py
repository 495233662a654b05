"""``attnorm table1`` from a checkout: ``python scripts/table1.py --help`` explains it."""

import sys

from attnorm.commands.table1 import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
