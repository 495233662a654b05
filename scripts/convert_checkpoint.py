"""The command ``attnorm convert-checkpoint`` from a checkout; --help says what it takes."""

import sys

from attnorm.commands.convert_checkpoint import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
