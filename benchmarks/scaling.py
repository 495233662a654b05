"""``python -m benchmarks scaling``: bounds on the hours of Table 1's rows on H100s.

Nothing is timed: hours = epochs × images ÷ (images per second of one GPU × GPUs). docs/scaling.md
shows the table, and says where the speeds come from and what is left out.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnorm.errors import UserError
from attnorm.reporting.table1.paper import ROWS, PaperRow
from benchmarks.model import EAGER

TRAIN_IMAGES = 1_281_167

# Images per second that the memory of one H100 (3.35 TB/s) allows in training: fp16, channels_last,
# 224². GN and AN need BN's passes over the activations, SE and SN more (docs/scaling.md).
ROOFLINE = {"resnet50": 6605.0, "resnet101": 4285.0, "densenet161": 2717.0, "mobilenetv2": 13395.0}
SLOWER = {("resnet50", "se"): 5237.0, ("resnet50", "sn"): 2702.0}
PUBLISHED_SHARE = 2790 / 6605  # PyTorch's published ResNet-50 on an H100, of its roofline

BOUNDS = "Bounds for H100s, not measurements: no step was timed on a GPU."

# Images per second of one GPU, by (arch, norm).
Speeds = Mapping[tuple[str, str], float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks scaling``."""
    parser.add_argument(
        "--images-per-second",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="of python -m benchmarks model --json, measured on one GPU",
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--epochs", type=int, default=120)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Hours of every row, at the two bounds or at the measured speeds.

    Raises:
        UserError: an impossible number, or a file of another kind.
    """
    if args.epochs < 1:
        raise UserError(f"--epochs {args.epochs}: it must be at least 1.")
    cases, source = bounds(), BOUNDS
    if args.images_per_second:
        measured, source = read_speeds(args.images_per_second)
        cases = {"measured": measured}
    rows = [_line(row, cases, args.gpus, args.epochs) for row in ROWS]
    return {"machine": source, f"hours of {args.epochs} epochs": [*rows, _sum(rows)]}


def bounds() -> dict[str, Speeds]:
    """The speeds that memory bandwidth allows, and the published share of them."""
    keys = [(row.arch, row.norm) for row in ROWS]
    roofline = {key: SLOWER.get(key, ROOFLINE[key[0]]) for key in keys}
    published = {key: speed * PUBLISHED_SHARE for key, speed in roofline.items()}
    return {"bandwidth bound": roofline, "42 % of it": published}


def hours(images_per_second: float, gpus: int, epochs: int) -> float:
    """Of training on ImageNet, where GPUs neither wait for each other nor for images."""
    return epochs * TRAIN_IMAGES / (images_per_second * gpus) / 3600


def images_per_step(row: PaperRow, gpus: int) -> tuple[int, int]:
    """Forward and backward passes of a GPU in one step, and the images of each.

    The paper's steps are 4 × 128 images, SN's 8 × 32; fewer GPUs accumulate gradients.

    Raises:
        UserError: the GPUs cannot share a step's images evenly.
    """
    batch, most = (256, 32) if row.norm == "sn" else (512, 128)
    if gpus < 1 or batch % gpus:
        raise UserError(
            f"--gpus {gpus}: {row.label}'s {batch} images per step are not divisible by it; use a"
            f" power of two up to {batch}."
        )
    images = batch // gpus
    passes = max(1, images // most)
    return passes, images // passes


def read_speeds(paths: Sequence[Path]) -> tuple[Speeds, str]:
    """Eager speeds of ``python -m benchmarks model --json``, and the machines they are of.

    Raises:
        UserError: a file cannot be read or is of another kind, or a row is in two of them.
    """
    speeds: dict[tuple[str, str], float] = {}
    machines: list[str] = []
    for path in paths:
        try:
            record = json.loads(path.read_text())
            found = {
                (x["arch"], x["norm"]): float(x["images per second"])
                for x in record["training"]
                if x.get("mode", EAGER) == EAGER
            }
            machines.append(f"{record['machine']}: `{record['command']}`")
        except OSError as error:
            raise UserError(f"--images-per-second {path}: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"--images-per-second {path} is not what python -m benchmarks model --json writes"
                f" ({type(error).__name__}: {error})."
            ) from error
        if not all(0 < speed < math.inf for speed in found.values()):
            raise UserError(f"--images-per-second {path}: a speed must be a number above 0.")
        if twice := speeds.keys() & found.keys():
            raise UserError(f"--images-per-second: {'_'.join(min(twice))} is in two files.")
        speeds |= found
    return speeds, "Measured. " + " · ".join(machines)


def _line(
    row: PaperRow, cases: Mapping[str, Speeds], gpus: Sequence[int], epochs: int
) -> dict[str, Any]:
    known = {name: speeds.get((row.arch, row.norm)) for name, speeds in cases.items()}
    line: dict[str, Any] = {"row": row.label}
    line |= {f"img/s of one GPU, {name}": speed for name, speed in known.items()}
    for count in gpus:
        passes, images = images_per_step(row, count)
        each = f"{count} GPU{'s' if count > 1 else ''}"
        line[f"{each}: images each"] = f"{passes} × {images}" if passes > 1 else f"{images}"
        for name, speed in known.items():
            line[f"{each}: hours, {name}"] = speed and hours(speed, count, epochs)
    return line


def _sum(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All rows together; a sum without some of them is None."""
    total: dict[str, Any] = dict.fromkeys(rows[0], "") | {"row": "all eleven"}
    for name in (name for name in total if ": hours, " in name):
        column = [row[name] for row in rows]
        total[name] = None if None in column else sum(column)
    return total
