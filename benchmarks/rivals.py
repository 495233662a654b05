"""What ``benchmarks command`` holds the trainer against, each a command of its own.

  python -m benchmarks.rivals bare --root DATA ...   our network and batches in a loop of ten lines
  python -m benchmarks.rivals timm --root DATA ...   timm's network, loader, optimizer and schedule

Each trains one epoch, evaluates once and saves its weights, as ``attnorm train epochs=1`` does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from attnorm import create_model
from attnorm.config import LoaderConfig, load_arch
from attnorm.data.build import build_eval_loader, build_train_loader
from attnorm.distributed import Placement
from attnorm.run.allocator import keep_freed_memory
from attnorm.training.precision import Precision, resolve_precision
from benchmarks.measure import PRECISIONS, default_device
from benchmarks.photos import photo_data

Batches = Iterator[tuple[Tensor, Tensor]]
LR = 0.05


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rival", choices=("bare", "timm"))
    parser.add_argument("--root", type=Path, required=True, help="holds train/ and val/")
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--norm", default="bn", help="bare only; timm's networks have bn")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)
    parser.add_argument("--keep-memory", action="store_true", help="the trainer's allocator")
    parser.add_argument("--output", type=Path, required=True, help="the weights go there")
    return parser.parse_args(arguments)


def bare(args: argparse.Namespace, precision: Precision, device: torch.device) -> nn.Module:
    """Our network and our loaders; nothing else of this project."""
    data = photo_data(args.root, args.image_size, args.workers)
    placement = Placement(device, args.batch_size, precision.input_dtype)
    classes = sum(path.is_dir() for path in (args.root / "train").iterdir())
    model = create_model(args.arch, norm=args.norm, num_classes=classes)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4, fused=True
    )
    with closing(build_train_loader(data, LoaderConfig("auto"), placement, seed=0)) as train:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(train))
        for images, labels in train.epoch(0):
            with precision.autocast():
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
    with closing(build_eval_loader(data, LoaderConfig("auto"), placement)) as val:
        report(model, val.epoch(0), precision)
    return model


def with_timm(args: argparse.Namespace, precision: Precision, device: torch.device) -> nn.Module:
    """The same network, crops and flips, made of timm's parts."""
    arch = load_arch(args.arch)
    loaders = []
    for split, training in (("train", True), ("val", False)):
        dataset = create_dataset("", root=str(args.root / split), split=split, is_training=training)
        loaders.append(
            create_loader(
                dataset,
                input_size=(3, args.image_size, args.image_size),
                batch_size=args.batch_size,
                is_training=training,
                num_workers=args.workers,
                color_jitter=None,
                interpolation="bilinear",
                crop_pct=1.0,
                device=device,
                pin_memory=device.type == "cuda",
            )
        )
    train, val = loaders
    classes = len(train.dataset.reader.class_to_idx)
    model: nn.Module = timm.create_model(arch.timm_model, num_classes=classes, **arch.timm_options)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(
        model, opt="momentum", lr=LR, weight_decay=1e-4, momentum=0.9, foreach=True
    )
    schedule = CosineLRScheduler(optimizer, t_initial=len(train), t_in_epochs=False)
    for step, (images, labels) in enumerate(train, start=1):
        images = images.contiguous(memory_format=torch.channels_last)
        with precision.autocast():
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        schedule.step_update(step)
        optimizer.zero_grad()
    report(model, iter(val), precision)
    return model


@torch.inference_mode()
def report(model: nn.Module, batches: Batches, precision: Precision) -> None:
    """The error on the validation images."""
    model.eval()
    wrong = seen = 0
    for images, labels in batches:
        with precision.autocast():
            wrong += int((model(images).argmax(1) != labels).sum())
        seen += len(labels)
    sys.stdout.write(f"top-1 error {100 * wrong / seen:.2f} % of {seen}\n")


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    if args.keep_memory:
        keep_freed_memory()
    torch.manual_seed(0)
    device = default_device()
    precision = resolve_precision(args.precision, device)
    rival = {"bare": bare, "timm": with_timm}[args.rival]
    torch.save(rival(args, precision, device).state_dict(), args.output)


if __name__ == "__main__":
    main(sys.argv[1:])
