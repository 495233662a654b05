"""Train a model: ``python train.py [group=option ...] [key=value ...]``, or under ``torchrun``."""

import signal
import sys

# Ctrl-C while libraries are imported ends this without a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from attnorm.__main__ import run

if __name__ == "__main__":
    run("train", *sys.argv[1:])
