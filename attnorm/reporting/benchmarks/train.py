"""``benchmark.py train``: our trainer against a bare loop and a loop of timm's parts.

All three train the same model on the same batch in memory, a block of steps at a time, in turns;
what differs is only what surrounds a step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from timm.optim import create_optimizer_v2
from timm.utils import NativeScaler
from torch import Tensor, nn
from torch.nn import functional as F

from attnorm import config as schema
from attnorm import distributed
from attnorm.data.loader import Loader
from attnorm.data.sampling import Plan
from attnorm.data.synthetic import SyntheticLoader
from attnorm.models.build import build_model
from attnorm.tracking import Tracker
from attnorm.training import optim
from attnorm.training.precision import Precision, resolve_precision
from attnorm.training.trainer import Trainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``benchmark.py train``."""
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--norm", default="bn")
    parser.add_argument("--image-size", type=int, default=64, help="224 on a GPU")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="steps in a block")
    parser.add_argument("--repeats", type=int, default=6, help="blocks of each loop, in turns")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Median images per second of each loop, and the trainer's ratio to the other two."""
    process = distributed.current_process()
    config = make_config(args)
    precision = resolve_precision(config.precision, process.device)
    loader = _loader(config, args.steps, process.device, precision)
    folder = Path(tempfile.mkdtemp(prefix="attnorm-benchmark-"))
    trainer, tracker = make_trainer(config, args.steps, process, folder)
    loops: dict[str, Callable[[], None]] = {
        "trainer": partial(one_epoch, trainer, tracker),
        "bare loop": _bare_loop(config, loader, process.device, precision),
        "timm's parts": _timm_loop(config, loader, process.device, precision),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for loop in loops.values():  # warm-up: memory, cuDNN's choice of kernels
        loop()
    for turn in range(args.repeats):
        # Each one comes first, second and third: what ran before leaves its traces in the caches.
        for name in (*list(loops)[turn % 3 :], *list(loops)[: turn % 3]):
            seconds[name].append(_timed(loops[name], process.device))
    images = args.steps * args.batch_size
    speed = {name: images / statistics.median(times) for name, times in seconds.items()}
    ratios = {
        f"trainer ÷ {name}": statistics.median(
            other / own for other, own in zip(seconds[name], seconds["trainer"], strict=True)
        )
        for name in ("bare loop", "timm's parts")
    }
    return {"images_per_second": speed, "ratios": ratios}


def make_config(args: argparse.Namespace) -> schema.Config:
    """A run with the options that ``add_arguments`` adds, on synthetic images."""
    composed = OmegaConf.merge(
        OmegaConf.structured(schema.Config),
        {
            "name": "benchmark",
            "arch": OmegaConf.structured(schema.load_arch(args.arch)),
            "norm": OmegaConf.structured(schema.load_norm(args.norm)),
            "data": {**schema.load_group("data", "folder"), "num_classes": 1000},
            "loader": schema.load_group("loader", "synthetic"),
            "batch_size": args.batch_size,
            "epochs": 1_000_000,  # the trainer is stopped by the clock, not by the schedule
        },
    )
    assert isinstance(composed, DictConfig)
    config = schema.from_omegaconf(composed)
    size = args.image_size
    return replace(config, data=replace(config.data, image_size=size, resize_size=size))


def _loader(
    config: schema.Config, steps: int, device: torch.device, precision: Precision
) -> Loader:
    plan = Plan(steps * config.batch_size, config.batch_size, training=True)
    return SyntheticLoader(
        plan,
        image_size=config.data.image_size,
        num_classes=1000,
        device=device,
        dtype=precision.input_dtype,
        channels_last=config.channels_last,
    )


def make_trainer(
    config: schema.Config, steps: int, process: distributed.Process, folder: Path
) -> tuple[Trainer, Tracker]:
    """The project's own trainer, as ``train.py`` runs it, with epochs of ``steps``."""
    torch.manual_seed(0)
    model = build_model(config.arch, config.norm, 1000)
    precision = resolve_precision(config.precision, process.device)
    loader = _loader(config, steps, process.device, precision)
    trainer = Trainer(config, model, loader, loader, [""] * 1000, process, folder)
    return trainer, Tracker(folder, enabled=True, tensorboard=True)


def one_epoch(trainer: Trainer, tracker: Tracker) -> None:
    """An epoch of training without the evaluation at its end."""
    trainer.train_epoch(tracker)
    trainer.state.epoch, trainer.state.step_in_epoch = trainer.state.epoch + 1, 0


def _bare_loop(
    config: schema.Config, loader: Loader, device: torch.device, precision: Precision
) -> Callable[[], None]:
    model = _model(config, device)
    optimizer = optim.build_optimizer(model, config.optim)
    scaler = precision.scaler()

    def epoch() -> None:
        for images, labels in loader.epoch(0):
            with precision.autocast():
                loss = F.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

    return epoch


def _timm_loop(
    config: schema.Config, loader: Loader, device: torch.device, precision: Precision
) -> Callable[[], None]:
    model = _model(config, device)
    optimizer = create_optimizer_v2(
        model, opt="momentum", lr=config.optim.lr, weight_decay=1e-4, momentum=0.9
    )
    criterion = nn.CrossEntropyLoss()
    scaler = NativeScaler(device.type) if precision.name == "fp16" else None

    def step(images: Tensor, labels: Tensor) -> None:
        with precision.autocast():
            loss = criterion(model(images), labels)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler(loss, optimizer, parameters=model.parameters())
        optimizer.zero_grad()

    def epoch() -> None:
        for images, labels in loader.epoch(0):
            step(images, labels)

    return epoch


def _model(config: schema.Config, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(config.arch, config.norm, 1000).to(device)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(memory_format=layout).train()


def _timed(loop: Callable[[], None], device: torch.device) -> float:
    _synchronize(device)
    started = time.perf_counter()
    loop()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
