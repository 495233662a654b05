"""``python -m benchmarks memory``: how much a loader holds, epoch after epoch.

Each loader runs in a process of its own. What counts is its proportional set size together with its
workers', so that shared pages are counted once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.loader import photo_loader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks memory``."""
    parser.add_argument("--root", type=Path, required=True, help="holds train/CLASS/*")
    parser.add_argument("--loader", nargs="+", default=["dali", "torch"])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """MiB after the second and the last epoch, the most in between, and the growth in percent."""
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val"):  # one is read, both have to be there
            (Path(folder) / split).symlink_to((args.root / "train").resolve())
        measured = {name: _in_a_process(name, Path(folder), args) for name in args.loader}
    rows = []
    for name, mib in measured.items():
        second, last = mib[1], mib[-1]
        rows.append(
            {
                "loader": name,
                "after epoch 2, MiB": second,
                f"after epoch {args.epochs}, MiB": last,
                "most since epoch 2, MiB": max(mib[1:]),
                "growth, %": 100 * (last / second - 1),
            }
        )
    return {"memory": rows}


def _in_a_process(name: str, root: Path, args: argparse.Namespace) -> list[float]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(name, root, args, sender))
    process.start()
    sender.close()
    try:
        mib: list[float] = receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"the process with loader={name} failed: see above") from error
    finally:
        process.join()
    return mib


def _measure(name: str, root: Path, args: argparse.Namespace, result: Connection) -> None:
    with closing(photo_loader(name, root, args, workers=args.workers)) as loader:
        mib = []
        for epoch in range(args.epochs):
            for _ in loader.epoch(epoch):
                pass
            mib.append(sum(_proportional_mib(pid) for pid in _family("self")))
    result.send(mib)


def _family(pid: str) -> Iterator[str]:
    """A process and its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _family(child)


def _proportional_mib(pid: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
