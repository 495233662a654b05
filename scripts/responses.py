"""``attnorm responses`` from a checkout: ``python scripts/responses.py --help`` explains it."""

import sys

from attnorm.__main__ import run

if __name__ == "__main__":
    run("responses", *sys.argv[1:])
