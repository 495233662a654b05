"""``benchmarks detection``: Mask R-CNN as a person starts it, against torchvision's own, in turns.

``attnorm train`` and ``attnorm eval`` with ResNet-50, its batch norms in training mode and nothing
frozen, against ``maskrcnn_resnet50_fpn`` in a plain loop: the same weights to begin with, pictures,
sizes, batch, rates, numbers of proposals, samples and detections, workers, and pycocotools. What is
timed in training is one epoch and one evaluation; the evaluation alone is that of our trained
weights by both.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from attnorm.config import CocoConfig, compose
from attnorm.detection.coco import read_split
from attnorm.detection.task import Detection
from benchmarks.command import OURS, compare, in_turns, time_command
from benchmarks.detection_rival import LR
from benchmarks.measure import PRECISIONS

RIVAL = "torchvision's loop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``benchmarks detection``."""
    parser.add_argument("--root", type=Path, required=True, help="COCO's layout")
    parser.add_argument("--side", type=int, default=256, help="the shorter side of pictures")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)
    parser.add_argument("--repeats", type=int, default=5, help="rounds")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Medians of both commands of training and of evaluation, and their ratios by round."""
    train, val = (
        len(read_split(CocoConfig(name="coco", root=str(args.root)), training))
        for training in (True, False)
    )
    with tempfile.TemporaryDirectory(prefix="attnorm-benchmark-") as name:
        folder = Path(name)
        _write_start(args, folder / "start.pt")
        training = in_turns(_training(args, folder / "run"), args.repeats, folder)
        time_command(_training(args, folder / "trained")[OURS], folder)
        evaluation = in_turns(_evaluation(args, folder / "trained"), args.repeats, folder)
    sides = f"pictures of {args.side} pixels, {args.precision}"
    return {
        f"{train} training and {val} validation {sides}": compare(training, OURS, train + val),
        f"evaluation alone, {val} {sides}": compare(evaluation, OURS, val),
    }


def _training(args: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    ours = [sys.executable, "-m", "attnorm", "train", f"hydra.run.dir={folder}"]
    rival = [*_rival(args, "train", folder.parent / "start.pt"), "--weights"]
    return {OURS: [*ours, *_settings(args)], RIVAL: [*rival, f"{folder}.torchvision.pt"]}


def _evaluation(args: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    ours = [sys.executable, "-m", "attnorm", "eval", f"checkpoint={folder / 'best.pt'}"]
    return {OURS: [*ours, *_shared(args)], RIVAL: _rival(args, "eval", folder / "best.pt")}


def _write_start(args: argparse.Namespace, path: Path) -> None:
    """The weights that ``attnorm train`` begins with: a function of the seed."""
    config = compose(_settings(args))
    torch.manual_seed(config.seed)
    task = Detection.from_data(config)
    torch.save(task.build_model(config).state_dict(), path)


def _settings(args: argparse.Namespace) -> list[str]:
    ours = ["task=detection", "arch=resnet50", "norm=bn", "data=coco", "detector=mask_rcnn"]
    ours += [f"optim.reference_batch={args.batch_size}", f"optim.lr={LR}", "epochs=1"]
    return [*ours, "detector.freeze=none", f"data.train_sizes=[{args.side}]", *_shared(args)]


def _shared(args: argparse.Namespace) -> list[str]:
    largest = args.side * 1333 // 800  # as 1333 belongs to 800 in the published settings
    return [
        *(f"data.root={args.root}", f"data.val_size={args.side}", f"data.max_size={largest}"),
        *(f"data.workers={args.workers}", f"batch_size={args.batch_size}"),
        f"precision={args.precision}",
    ]


def _rival(args: argparse.Namespace, what: str, start: Path) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.detection_rival", what, "--start", str(start)]
    command += ["--root", str(args.root), "--side", str(args.side)]
    command += ["--batch-size", str(args.batch_size), "--workers", str(args.workers)]
    return [*command, "--precision", args.precision]
