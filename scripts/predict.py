"""``attnorm predict`` from a checkout: ``python scripts/predict.py --help`` explains it."""

import sys

from attnorm.commands.predict import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
