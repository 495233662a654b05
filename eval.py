"""Evaluate a checkpoint: ``python eval.py checkpoint=runs/NAME/best.pt [key=value ...]``."""

import sys

from attnorm.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
