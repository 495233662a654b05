"""The command ``attnorm export-safetensors`` from a checkout; --help says what it takes."""

import sys

from attnorm.__main__ import run

if __name__ == "__main__":
    run("export-safetensors", *sys.argv[1:])
