"""``python -m benchmarks loader``: our loaders against those of timm, torchvision and SPDL.

Every loader reads the same photographs with the same number of workers, random-resized-crops, flips
and normalizes them; one epoch each in turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    create_dataset,
    create_loader,
)
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from attnorm.config import LoaderConfig
from attnorm.data.build import build_train_loader
from attnorm.data.folder import scan
from attnorm.data.loader import Loader
from attnorm.distributed import Placement
from benchmarks.measure import Times, default_device, seconds
from benchmarks.photos import link, photo_data
from benchmarks.spdl_loader import Epoch, spdl_epochs


class Contestant(NamedTuple):
    """A loader in the benchmark."""

    name: str
    workers: int
    epoch: Epoch

    @property
    def label(self) -> str:
        """What tells it from the others."""
        return f"{self.name}, {self.workers} workers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks loader``."""
    parser.add_argument("--root", type=Path, required=True, help="holds train/CLASS/*")
    parser.add_argument("--images", type=int, default=1024, help="photos repeat up to this many")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[2], help="the others have the last"
    )
    parser.add_argument("--repeats", type=int, default=5, help="epochs of each loader, in turns")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A line per loader: its median speed, what an image costs the processor, our ratio to it."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _repeat(args.root / "train", root / "train", args.images)
        (root / "val").symlink_to(root / "train")
        loaders = _contestants(root, args, stack)
        times, costs = (Times({one.label: [] for one in loaders}) for _ in range(2))
        for epoch in range(args.repeats + 1):
            for one in loaders:
                taken, cost = _per_image(one.epoch, epoch)
                if epoch:  # the first one starts the workers and warms the disk cache
                    times[one.label].append(taken)
                    costs[one.label].append(cost)
    rows = [
        {
            "loader": one.name,
            "workers": one.workers,
            "img/s": 1 / times.median(one.label),
            "processor, ms per image": 1000 * costs.median(one.label),
            "first ÷ it": times.spread(one.label, to=loaders[0].label),
        }
        for one in loaders
    ]
    title = f"{args.images:,} photographs to {args.image_size} pixels"
    return {title: rows}


def _contestants(root: Path, args: argparse.Namespace, stack: ExitStack) -> list[Contestant]:
    """Ours with every number of workers, the others with the last."""
    loaders: list[Contestant] = []
    *fewer, workers = args.workers
    for count in (workers, *fewer):
        for name in ("auto", "torch"):
            ours = photo_loader(name, root, args, workers=count)
            epoch = stack.enter_context(closing(ours)).epoch
            loaders.append(Contestant(f"ours ({name})", count, epoch))
    photos = scan(root / "train")
    pairs = [(Path(photos.path(k)), int(label)) for k, label in enumerate(photos.labels)]
    others = {
        "timm": _timm(root, args, workers, color_jitter=0.4),
        "timm, no colour jitter": _timm(root, args, workers, color_jitter=None),
        "torchvision": _torchvision(root, args, workers),
        "SPDL": spdl_epochs(pairs, args.image_size, args.batch_size, workers),
    }
    there = {name: epoch for name, epoch in others.items() if epoch is not None}
    return [*loaders, *(Contestant(name, workers, epoch) for name, epoch in there.items())]


def _repeat(source: Path, target: Path, images: int) -> None:
    """Links to the photographs of ``source``, again and again until there are ``images``."""
    photos = scan(source)
    link(photos, (number % len(photos) for number in range(images)), target)


def _placement(args: argparse.Namespace) -> Placement:
    device = default_device()
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    return Placement(device, args.batch_size, dtype)


def photo_loader(name: str, root: Path, args: argparse.Namespace, *, workers: int) -> Loader:
    """One of ours over ``root`` in the benchmark's sizes, in the format that training wants."""
    data = photo_data(root, args.image_size, workers)
    return build_train_loader(data, LoaderConfig(name=name), _placement(args), seed=0)


def _timm(root: Path, args: argparse.Namespace, workers: int, color_jitter: float | None) -> Epoch:
    """timm's loader with its defaults; colour jitter is one of them."""
    placement = _placement(args)
    dataset = create_dataset("", root=str(root / "train"), split="train", is_training=True)
    loader = create_loader(
        dataset,
        input_size=(3, args.image_size, args.image_size),
        batch_size=args.batch_size,
        is_training=True,
        num_workers=workers,
        color_jitter=color_jitter,
        device=placement.device,
        img_dtype=placement.dtype,
        pin_memory=placement.device.type == "cuda",
    )
    return lambda _epoch: iter(loader)


def _torchvision(root: Path, args: argparse.Namespace, workers: int) -> Epoch:
    """ImageFolder and the transforms of torchvision's own training reference."""
    steps = [
        transforms.RandomResizedCrop(args.image_size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    ]
    loader = DataLoader(
        ImageFolder(str(root / "train"), transforms.Compose(steps)),
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
    )
    return lambda _epoch: iter(loader)


def _per_image(batches: Epoch, epoch: int) -> tuple[float, float]:
    """Seconds that pass, and seconds of all cores, its workers' included."""
    images: list[int] = []
    before = _processor_seconds()
    taken = seconds(lambda: images.extend(len(labels) for _, labels in batches(epoch)))
    return taken / sum(images), (_processor_seconds() - before) / sum(images)


def _processor_seconds() -> float:
    """Of this process, its living children and those that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in multiprocessing.active_children():
        # proc(5): the fields 14 and 15, of which the command's name may hold spaces.
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total
