"""``python -m benchmarks loader``: our loaders against timm's and torchvision's.

Every loader reads the same photographs with the same number of workers, random-resized-crops, flips
and normalizes them; one epoch each in turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_loader
from torch import Tensor
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

Epoch = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks loader``."""
    parser.add_argument("--root", type=Path, required=True, help="holds train/CLASS/*")
    parser.add_argument("--images", type=int, default=1024, help="photos repeat up to this many")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="epochs of each loader, in turns")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Median images per second of each loader, and our default's ratio to the others'."""
    placement = _placement(args)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _repeat(args.root / "train", root / "train", args.images)
        (root / "val").symlink_to(root / "train")
        ours = {
            f"ours ({name})": stack.enter_context(closing(photo_loader(name, root, args)))
            for name in ("auto", "torch")
        }
        loaders: dict[str, Epoch] = {
            **{name: loader.epoch for name, loader in ours.items()},
            "timm": _timm(root, args, placement, color_jitter=0.4),
            "timm, no colour jitter": _timm(root, args, placement, color_jitter=None),
            "torchvision": _torchvision(root, args),
        }
        times = Times({name: [] for name in loaders})
        for epoch in range(args.repeats + 1):
            for name, batches in loaders.items():
                taken = _seconds_per_image(batches, epoch)
                if epoch:  # the first one starts the workers and warms the disk cache
                    times[name].append(taken)
    ratios = {
        f"ours (auto) ÷ {name}": times.ratio(name, to="ours (auto)")
        for name in times
        if name != "ours (auto)"
    }
    speed = {name: 1 / times.median(name) for name in times}
    return {"images_per_second": speed, "ratios": ratios}


def _repeat(source: Path, target: Path, images: int) -> None:
    """Links to the photographs of ``source``, again and again until there are ``images``."""
    photos = scan(source)
    link(photos, (number % len(photos) for number in range(images)), target)


def _placement(args: argparse.Namespace) -> Placement:
    device = default_device()
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    return Placement(device, args.batch_size, dtype)


def photo_loader(name: str, root: Path, args: argparse.Namespace) -> Loader:
    """One of ours over ``root`` in the benchmark's sizes, in the format that training wants."""
    return build_train_loader(
        photo_data(root, args), LoaderConfig(name=name), _placement(args), seed=0
    )


def _timm(
    root: Path, args: argparse.Namespace, placement: Placement, color_jitter: float | None
) -> Epoch:
    """timm's loader with its defaults; colour jitter is one of them."""
    dataset = create_dataset("", root=str(root / "train"), split="train", is_training=True)
    loader = create_loader(
        dataset,
        input_size=(3, args.image_size, args.image_size),
        batch_size=args.batch_size,
        is_training=True,
        num_workers=args.workers,
        color_jitter=color_jitter,
        device=placement.device,
        img_dtype=placement.dtype,
        pin_memory=placement.device.type == "cuda",
    )
    return lambda _epoch: iter(loader)


def _torchvision(root: Path, args: argparse.Namespace) -> Epoch:
    """ImageFolder and the transforms of torchvision's own training reference."""
    steps = [
        transforms.RandomResizedCrop(args.image_size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    loader = DataLoader(
        ImageFolder(str(root / "train"), transforms.Compose(steps)),
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        drop_last=True,
    )
    return lambda _epoch: iter(loader)


def _seconds_per_image(batches: Epoch, epoch: int) -> float:
    images: list[int] = []
    taken = seconds(lambda: images.extend(len(labels) for _, labels in batches(epoch)))
    return taken / sum(images)
