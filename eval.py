"""Evaluate a checkpoint: ``python eval.py checkpoint=runs/NAME/best.pt [key=value ...]``."""

import signal
import sys

# Ctrl-C while libraries are imported ends this without a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from attnorm.__main__ import run

if __name__ == "__main__":
    run("eval", *sys.argv[1:])
