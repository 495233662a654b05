"""The command ``attnorm export-safetensors`` from a checkout; --help says what it takes."""

import sys

from attnorm.commands.export_safetensors import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
