"""``benchmark.py model``: training speed of whole networks that differ in their normalizer.

Forward, backward and an SGD step on one batch in memory; the networks take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from attnorm.models import create_model
from attnorm.reporting.benchmarks.measure import take_turns

NORMS = ("bn", "gn", "sn", "se", "an")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``benchmark.py model``."""
    gpu = torch.cuda.is_available()
    parser.add_argument("--arch", nargs="+", default=["resnet50"])
    parser.add_argument("--norm", nargs="+", default=list(NORMS), choices=NORMS)
    parser.add_argument("--batch-size", type=int, default=128 if gpu else 32)
    parser.add_argument("--image-size", type=int, default=224 if gpu else 64)
    parser.add_argument("--dtype", default="fp16" if gpu else "fp32", choices=DTYPES)
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.contiguous_format if args.contiguous else torch.channels_last
    model: nn.Module = create_model(arch, norm=norm, num_classes=1000)
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
    network = torch.compile(model) if args.compile else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
    size = args.image_size
    images = torch.randn(args.batch_size, 3, size, size, device=device).to(memory_format=layout)
    labels = torch.randint(1000, (args.batch_size,), device=device)
    dtype = DTYPES[args.dtype]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    def step() -> None:
        with _precision(device, dtype):
            loss = nn.functional.cross_entropy(network(images), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def _precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    if dtype is torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)
