"""``python -m benchmarks model``: training speed of networks that differ in their normalizer.

Forward, backward and an optimizer step as ``attnorm train`` takes them, on one batch in memory; the
networks take turns, eager and, with ``--compile``, under torch.compile. On a GPU also what it was
busy for, and how many kernels a step launches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from attnorm.config import SGDConfig
from attnorm.config.run import COMPILE_MODES
from attnorm.models import cpu, create_model
from attnorm.training.backends import set_backends
from attnorm.training.optim import build_optimizer
from attnorm.training.precision import Precision
from benchmarks.device_time import profile_kernels
from benchmarks.measure import PRECISIONS, default_device, take_turns

NORMS = ("bn", "gn", "sn", "se", "an")
EAGER = "eager"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks model``."""
    gpu = torch.cuda.is_available()
    parser.add_argument("--arch", nargs="+", default=["resnet50"])
    parser.add_argument("--norm", nargs="+", default=list(NORMS), choices=NORMS)
    parser.add_argument("--batch-size", type=int, default=128 if gpu else 32)
    parser.add_argument("--image-size", type=int, default=224 if gpu else 64)
    parser.add_argument("--dtype", default="fp16" if gpu else "fp32", choices=PRECISIONS)
    parser.add_argument("--contiguous", action="store_true", help="instead of channels_last")
    parser.add_argument(
        "--compile",
        nargs="*",
        metavar="MODE",
        choices=COMPILE_MODES,
        help=f"also under torch.compile, in these modes: {', '.join(COMPILE_MODES)}; the first"
        " where none is named",
    )
    parser.add_argument("--repeats", type=int, default=9, help="blocks of steps, in turns")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of each network, beside the same one with batch norm and itself eager."""
    set_backends(args.dtype)
    modes = [EAGER, *_compile_modes(args)]
    rows = []
    for arch in args.arch:
        steps = {
            f"{norm}, {mode}": training_step(arch, norm, args, mode)
            for norm in args.norm
            for mode in modes
        }
        times = take_turns(steps, args.repeats)
        for norm in args.norm:
            for mode in modes:
                name = f"{norm}, {mode}"
                row: dict[str, Any] = {"arch": arch, "norm": norm, "mode": mode}
                row["images per second"] = args.batch_size / times.median(name)
                if "bn" in args.norm:
                    row["speed ÷ bn"] = times.spread(f"bn, {mode}", name)
                if len(modes) > 1:
                    row["speed ÷ eager"] = times.spread(f"{norm}, {EAGER}", name)
                if torch.cuda.is_available():
                    row |= _on_the_device(steps[name], times.median(name))
                rows.append(row)
    return {"training": rows}


def _compile_modes(args: argparse.Namespace) -> list[str]:
    if args.compile is None:
        return []
    return args.compile or [COMPILE_MODES[0]]


def _on_the_device(step: Callable[[], None], seconds: float) -> dict[str, float]:
    kernels = profile_kernels(step, 3)
    return {"GPU busy, %": 100 * kernels.total / seconds, "launches": kernels.launches}


def training_step(
    arch: str, norm: str, args: argparse.Namespace, mode: str = EAGER
) -> Callable[[], None]:
    """A whole step of a network of its own, always on the same batch."""
    torch.manual_seed(0)
    device = default_device()
    precision = Precision(args.dtype, device.type)
    layout = torch.contiguous_format if args.contiguous else torch.channels_last
    model: nn.Module = create_model(arch, norm=norm, num_classes=1000)
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
    if device.type == "cpu":
        model = cpu.for_training(model)
    if mode != EAGER:
        model.compile(mode=mode)
    optimizer = build_optimizer(model, SGDConfig(name="sgd", lr=1e-4))
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    images = torch.randn(shape, device=device).to(precision.input_dtype, memory_format=layout)
    labels = torch.randint(1000, (args.batch_size,), device=device)
    scaler = precision.scaler()

    def step() -> None:
        if mode != EAGER:
            torch.compiler.cudagraph_mark_step_begin()
        with precision.autocast():
            loss = nn.functional.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step
