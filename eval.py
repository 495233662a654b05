"""Evaluate a checkpoint: ``python eval.py checkpoint=runs/NAME/best.pt [key=value ...]``."""

import signal
import sys

# Ctrl-C while libraries are imported ends this without a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from attnorm.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
