"""``python -m benchmarks model``: training speed of networks that differ in their normalizer.

Forward, backward and an SGD step on one batch in memory; the networks take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from attnorm.models import create_model
from attnorm.training.precision import Precision
from benchmarks.measure import PRECISIONS, default_device, take_turns

NORMS = ("bn", "gn", "sn", "se", "an")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks model``."""
    gpu = torch.cuda.is_available()
    parser.add_argument("--arch", nargs="+", default=["resnet50"])
    parser.add_argument("--norm", nargs="+", default=list(NORMS), choices=NORMS)
    parser.add_argument("--batch-size", type=int, default=128 if gpu else 32)
    parser.add_argument("--image-size", type=int, default=224 if gpu else 64)
    parser.add_argument("--dtype", default="fp16" if gpu else "fp32", choices=PRECISIONS)
    parser.add_argument("--contiguous", action="store_true", help="instead of channels_last")
    parser.add_argument("--compile", action="store_true", help="under torch.compile")
    parser.add_argument("--repeats", type=int, default=9, help="blocks of steps, in turns")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of each network, and its ratio to the same one with batch norm."""
    rows = []
    for arch in args.arch:
        steps = {norm: _training_step(arch, norm, args) for norm in args.norm}
        times = take_turns(steps, args.repeats)
        for norm in times:
            row: dict[str, Any] = {"arch": arch, "norm": norm}
            row["images per second"] = args.batch_size / times.median(norm)
            if "bn" in times:
                row["speed ÷ bn"] = times.ratio("bn", norm)
            rows.append(row)
    return {"training": rows}


def _training_step(arch: str, norm: str, args: argparse.Namespace) -> Callable[[], None]:
    torch.manual_seed(0)
    device = default_device()
    layout = torch.contiguous_format if args.contiguous else torch.channels_last
    model: nn.Module = create_model(arch, norm=norm, num_classes=1000)
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
    network = torch.compile(model) if args.compile else model
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=True
    )
    size = args.image_size
    images = torch.randn(args.batch_size, 3, size, size, device=device).to(memory_format=layout)
    labels = torch.randint(1000, (args.batch_size,), device=device)
    precision = Precision(args.dtype, device.type)
    scaler = precision.scaler()

    def step() -> None:
        with precision.autocast():
            loss = nn.functional.cross_entropy(network(images), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step
