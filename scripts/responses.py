"""``attnorm responses`` from a checkout: ``python scripts/responses.py --help`` explains it."""

import sys

from attnorm.commands.responses import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
