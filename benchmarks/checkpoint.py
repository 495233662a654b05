"""``python -m benchmarks checkpoint``: what writing a checkpoint beside the training costs.

Epochs with one checkpoint at their beginning and epochs without take turns; the difference is the
copy that the step waits for, and what the writing thread takes from the steps after it.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import train
from benchmarks.measure import Times, seconds

INTERVAL_SECONDS = 300  # checkpoint.every_minutes=5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks checkpoint``: those of ``train``."""
    train.add_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per checkpoint, and their share of five minutes of training."""
    workload = train.Workload.of(args)
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="attnorm-benchmark-"))
        trainer, tracker = train.make_trainer(workload, Path(name))
        stack.callback(tracker.close)  # before its folder goes

        def epoch() -> None:
            train.one_epoch(trainer, tracker)

        def epoch_beside_the_writing() -> None:
            epoch()
            trainer.checkpoints.finish()  # an epoch shorter than the writing waits for it here

        epoch()
        times = Times(plain=[], copying=[], saving=[])
        for _ in range(args.repeats):
            times["plain"].append(seconds(epoch))
            times["copying"].append(seconds(trainer.save))
            times["saving"].append(times["copying"][-1] + seconds(epoch_beside_the_writing))
        size = (Path(name) / "last.pt").stat().st_size / 2**20
    cost = times.median("saving") - times.median("plain")
    return {
        "checkpoint": {
            "size in MiB": size,
            "seconds that the step waits": times.median("copying"),
            "seconds that a checkpoint costs in all": cost,
            "percent of training at one in 5 minutes": 100 * cost / INTERVAL_SECONDS,
        }
    }
