"""A door to ``python -m benchmarks SUBJECT [options]`` that opens from any folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks is not installed

from benchmarks.__main__ import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
