"""The command ``attnorm convert-checkpoint`` from a checkout; --help says what it takes."""

import sys

from attnorm.__main__ import run

if __name__ == "__main__":
    run("convert-checkpoint", *sys.argv[1:])
