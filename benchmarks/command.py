"""``benchmarks command``: whole commands, as a person starts them, in turns.

``attnorm train epochs=1`` against a bare loop of the same network on the same batches, the same
loop with the trainer's allocator settings, and a loop of timm's parts; or against itself without
its passes in C or without DALI. All train one epoch of the same images, evaluate once and save
their weights; the clock runs from the start of the process to its end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnorm.data.folder import scan
from attnorm.errors import UserError
from benchmarks.measure import PRECISIONS, spread
from benchmarks.photos import link

OURS = "attnorm train"
LOOPS = ("bare loop", "bare loop, memory kept", "timm's parts")
# Ours without the passes in C, and without DALI: what these bring.
WITHOUT = ("plain operations", "loader=torch")


@dataclass(frozen=True)
class Finished:
    """What the system says of a finished command and the processes that it waited for.

    ``peak_mib`` is that of the largest of them, and at least that of the process that starts them,
    whose memory the system counts until the command has begun.
    """

    seconds: float
    user_seconds: float
    system_seconds: float
    page_faults: int
    peak_mib: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``benchmarks command``."""
    parser.add_argument("--root", type=Path, required=True, help="holds train/CLASS/* (and val/)")
    parser.add_argument("--arch", nargs="+", default=["mobilenetv2"])
    parser.add_argument("--norm", nargs="+", default=["bn"], help="timm takes part with bn")
    parser.add_argument("--rivals", nargs="*", default=LOOPS, choices=(*LOOPS, *WITHOUT))
    parser.add_argument("--images", type=int, help="of the epoch (default: all; they repeat)")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)
    parser.add_argument("--repeats", type=int, default=5, help="rounds")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Medians of every command, and its ratios to ours by round: median, lowest and highest."""
    tables: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="attnorm-benchmark-") as name:
        folder = Path(name)
        images = link_images(args.root, folder / "images", args.images)
        for arch in args.arch:
            commands = {
                f"{contestant}, {norm}": command
                for norm in args.norm
                for contestant, command in contestants(args, arch, norm, folder).items()
            }
            results = in_turns(commands, args.repeats, folder)
            tables[f"{arch}, {images} images of {args.image_size}², {args.precision}"] = [
                _row(label, results, images, args.norm) for label in results
            ]
    return tables


def contestants(
    args: argparse.Namespace, arch: str, norm: str, folder: Path
) -> dict[str, list[str]]:
    """The commands of one network, by name."""
    train = [sys.executable, "-m", "attnorm", "train", f"arch={arch}", f"norm={norm}", "epochs=1"]
    train += ["data=folder", f"data.root={folder / 'images'}", f"data.workers={args.workers}"]
    train += [f"data.image_size={args.image_size}", f"data.resize_size={args.image_size}"]
    train += [f"batch_size={args.batch_size}", f"precision={args.precision}", "optim.lr=0.4"]
    rival = ["--arch", arch, "--norm", norm, "--root", str(folder / "images")]
    rival += ["--image-size", str(args.image_size), "--batch-size", str(args.batch_size)]
    rival += ["--workers", str(args.workers), "--precision", args.precision]
    rival += ["--output", str(folder / "weights.pt")]
    start = [sys.executable, "-m", "benchmarks.rivals"]
    rivals = {
        "bare loop": [*start, "bare", *rival],
        "bare loop, memory kept": [*start, "bare", *rival, "--keep-memory"],
        "timm's parts": [*start, "timm", *rival],
    }
    train += [f"hydra.run.dir={folder / 'run'}"]
    rivals |= {
        "plain operations": ["env", "ATTNORM_KERNELS=plain", *train],
        "loader=torch": [*train, "loader=torch"],
    }
    chosen = [name for name in args.rivals if norm == "bn" or name != "timm's parts"]
    return {OURS: train, **{name: rivals[name] for name in chosen}}


def link_images(source: Path, target: Path, images: int | None) -> int:
    """An image folder of links: so many of ``train/``, again and again; ``val/``, or ``train/``."""
    photos = scan(source / "train")
    count = images or len(photos)
    order = [int(n * len(photos) / count) if count <= len(photos) else n for n in range(count)]
    link(photos, (number % len(photos) for number in order), target / "train")
    val = source / "val" if (source / "val").is_dir() else source / "train"
    (target / "val").symlink_to(val.resolve())
    return count


def in_turns(
    commands: dict[str, list[str]], rounds: int, folder: Path
) -> dict[str, list[Finished]]:
    """Every command once a round, each round beginning with another one; one round warms up."""
    results: dict[str, list[Finished]] = {name: [] for name in commands}
    names = list(commands)
    for turn in range(rounds + 1):
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            done = time_command(commands[name], folder)
            if turn:
                results[name].append(done)
    return results


def time_command(command: list[str], folder: Path) -> Finished:
    """Run it in a new process to its end.

    Raises:
        UserError: it failed; the message ends with its own last words.
    """
    shutil.rmtree(folder / "run", ignore_errors=True)
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": "ignore"}
    with (folder / "output.txt").open("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
        if process.returncode:
            output.seek(0)
            raise UserError(f"{' '.join(command)} failed: {output.read().strip()[-500:]}")
    return Finished(
        seconds, usage.ru_utime, usage.ru_stime, usage.ru_minflt, usage.ru_maxrss / 1024
    )


def compare(results: dict[str, list[Finished]], ours: str, images: int) -> list[dict[str, Any]]:
    """A row for each command; "ours ÷ it" above 1 means that ``ours`` took less time."""
    return [
        medians(label, own, images) | {"ours ÷ it": speed_ratio(results[ours], own)}
        for label, own in results.items()
    ]


def medians(label: str, own: list[Finished], images: int) -> dict[str, Any]:
    """What one command took."""
    seconds = statistics.median(done.seconds for done in own)
    return {
        "command": label,
        "seconds": round(seconds, 1),
        "img/s": round(images / seconds, 1),
        "user, s": round(statistics.median(done.user_seconds for done in own), 1),
        "system, s": round(statistics.median(done.system_seconds for done in own), 1),
        "page faults, 1000": statistics.median(done.page_faults for done in own) // 1000,
        "peak, MiB": round(statistics.median(done.peak_mib for done in own)),
    }


def _row(
    label: str, results: dict[str, list[Finished]], images: int, norms: list[str]
) -> dict[str, Any]:
    own, norm = results[label], label.rpartition(", ")[2]
    row = medians(label, own, images)
    row["ours ÷ it"] = speed_ratio(results[f"{OURS}, {norm}"], own)
    if len(norms) > 1:
        base = results[label.replace(f", {norm}", f", {norms[0]}")] if norm != norms[0] else own
        row[f"speed ÷ {norms[0]}"] = speed_ratio(own, base)
    return row


def speed_ratio(ours: list[Finished], others: list[Finished]) -> str:
    """Speed of the first over the second, round by round: median (lowest – highest)."""
    return spread([b.seconds / a.seconds for a, b in zip(ours, others, strict=True)])
