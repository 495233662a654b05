"""``attnorm predict`` from a checkout: ``python scripts/predict.py --help`` explains it."""

import sys

from attnorm.__main__ import run

if __name__ == "__main__":
    run("predict", *sys.argv[1:])
