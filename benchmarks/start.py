"""``python -m benchmarks start``: how long a person waits for the first training step.

``attnorm train`` is started as on the command line, on the digits, and its first recorded step
awaited.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from attnorm.errors import UserError

ARGUMENTS = ("epochs=1", "tracking.log_every=1", "name=start")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks start``."""
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="of attnorm train, such as norm=bn")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds from the command to the end of the first step; the very first start too.

    The first start may have to read the libraries from the disk.
    """
    seconds = [_seconds(args.overrides) for _ in range(args.repeats + 1)]
    return {
        "seconds to the first step": {
            "first start": seconds[0],
            "median of the later ones": statistics.median(seconds[1:]),
        }
    }


def _seconds(overrides: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "attnorm", "train", *ARGUMENTS, *overrides]
        with (Path(folder) / "output.txt").open("w+") as output:
            started = time.time()
            process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
            try:
                return _first_step(Path(folder) / "runs" / "start", process) - started
            except EOFError:
                output.seek(0)
                raise UserError(f"attnorm train ended early: {output.read().strip()}") from None
            finally:
                process.kill()
                process.wait()


def _first_step(run_dir: Path, process: subprocess.Popen[bytes]) -> float:
    """When the first step was recorded, in seconds since 1970."""
    path = run_dir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists():
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n") and json.loads(line)["kind"] == "train":
                    return float(json.loads(line)["time"])
        time.sleep(0.02)
    raise EOFError
