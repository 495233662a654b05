"""Train a model: ``python train.py [group=option ...] [key=value ...]``, or under ``torchrun``."""

import sys

from attnorm.commands.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
