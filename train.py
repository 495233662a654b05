"""Train a model: ``python train.py [group=option ...] [key=value ...]``, or under ``torchrun``."""

import signal
import sys

# Ctrl-C while libraries are imported ends this without a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from attnorm.commands.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
