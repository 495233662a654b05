"""``benchmark.py checkpoint``: what writing a checkpoint beside the training costs.

Epochs with one checkpoint at their beginning and epochs without take turns; the difference is the
copy that the step waits for, and what the writing thread takes from the steps after it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from attnorm import distributed
from attnorm.reporting.benchmarks import train

INTERVAL_SECONDS = 300  # checkpoint.every_minutes=5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``benchmark.py checkpoint``: those of ``train``."""
    train.add_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per checkpoint, and their share of five minutes of training."""
    process = distributed.current_process()
    config = train.make_config(args)
    with tempfile.TemporaryDirectory(prefix="attnorm-benchmark-") as name:
        trainer, tracker = train.make_trainer(config, args.steps, process, Path(name))
        train.one_epoch(trainer, tracker)
        plain, saving, copying = [], [], []
        for _ in range(args.repeats):
            started = time.perf_counter()
            train.one_epoch(trainer, tracker)
            plain.append(time.perf_counter() - started)
            started = time.perf_counter()
            trainer.save()
            copying.append(time.perf_counter() - started)
            train.one_epoch(trainer, tracker)
            trainer.keeper.finish()  # the epoch is longer than the writing, or waits for it here
            saving.append(time.perf_counter() - started)
        size = (Path(name) / "last.pt").stat().st_size / 2**20
    cost = statistics.median(saving) - statistics.median(plain)
    return {
        "checkpoint": {
            "size in MiB": size,
            "seconds that the step waits": statistics.median(copying),
            "seconds that a checkpoint costs in all": cost,
            "percent of training at one in 5 minutes": 100 * cost / INTERVAL_SECONDS,
        }
    }
