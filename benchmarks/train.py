"""``python -m benchmarks train``: our trainer against a bare loop and a loop of timm's parts.

All three train the same model on the same batch in memory, a block of steps at a time, in turns;
what differs is only what surrounds a step.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.utils import NativeScaler
from torch import Tensor, nn
from torch.nn import functional as F

from attnorm.classification import Classification
from attnorm.config import Config, compose
from attnorm.data.loader import Loader
from attnorm.distributed import Placement, Process, current_process
from attnorm.run.prepare import placement_of
from attnorm.run.train import build_trainer
from attnorm.tracking import Tracker, open_tracker
from attnorm.training import optim, records
from attnorm.training.precision import Precision, resolve_precision
from attnorm.training.trainer import Trainer
from benchmarks.measure import Times, seconds

CLASSES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks train``."""
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--norm", default="bn")
    parser.add_argument("--image-size", type=int, default=64, help="224 on a GPU")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="steps in a block")
    parser.add_argument("--repeats", type=int, default=6, help="blocks of each loop, in turns")


@dataclass(frozen=True)
class Workload:
    """The model and the batch in memory that every loop gets a copy of."""

    config: Config
    task: Classification
    process: Process
    placement: Placement

    @classmethod
    def of(cls, args: argparse.Namespace) -> Workload:
        """With the options that ``add_arguments`` adds, on synthetic images."""
        config = compose(
            [
                "name=benchmark",
                f"arch={args.arch}",
                f"norm={args.norm}",
                "data=folder",
                f"data.num_classes={CLASSES}",
                f"data.image_size={args.image_size}",
                f"data.resize_size={args.image_size}",
                "loader=synthetic",
                f"loader.images={args.steps * args.batch_size}",
                f"batch_size={args.batch_size}",
                "epochs=1000000",  # the trainer is stopped by the clock, not by the schedule
            ]
        )
        process = current_process()
        task = Classification.from_data(config)
        return cls(config, task, process, placement_of(config, process))

    @property
    def precision(self) -> Precision:
        return resolve_precision(self.config.precision, self.process.device)

    def loader(self) -> Loader:
        """An epoch is ``--steps`` batches."""
        return self.task.train_loader(self.config, self.placement)

    def model(self) -> nn.Module:
        """On its device, with the same weights each time."""
        torch.manual_seed(0)
        model = self.task.build_model(self.config).to(self.placement.device)
        return model.to(memory_format=self.placement.memory_format).train()


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Median images per second of each loop, and the trainer's ratio to the other two."""
    workload = Workload.of(args)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="attnorm-benchmark-"))
        trainer, tracker = make_trainer(workload, Path(folder))
        stack.callback(tracker.close)  # before its folder goes
        times = _take_turns(workload, partial(one_epoch, trainer, tracker), args.repeats)
    images = args.steps * args.batch_size
    speed = {name: images / times.median(name) for name in times}
    ratios = {
        f"trainer ÷ {name}": times.ratio(name, to="trainer")
        for name in ("bare loop", "timm's parts")
    }
    return {"images_per_second": speed, "ratios": ratios}


def _take_turns(workload: Workload, trainer: Callable[[], None], repeats: int) -> Times:
    """Seconds of an epoch of each loop.

    ``trainer`` was built before: that tells torch's backends what the other two run with as well.
    """
    loops = {
        "trainer": trainer,
        "bare loop": _bare_loop(workload),
        "timm's parts": _timm_loop(workload),
    }
    times = Times({name: [] for name in loops})
    for loop in loops.values():  # warm-up: memory, cuDNN's choice of kernels
        loop()
    for turn in range(repeats):
        # Each one comes first, second and third: what ran before leaves its traces in the caches.
        for name in (*list(loops)[turn % 3 :], *list(loops)[: turn % 3]):
            times[name].append(seconds(loops[name]))
    return times


def make_trainer(workload: Workload, folder: Path) -> tuple[Trainer, Tracker]:
    """The project's own trainer, as ``attnorm train`` runs it, and its record in ``folder``."""
    with ExitStack() as loaders:  # synthetic ones: there is nothing to close
        trainer = build_trainer(workload.config, workload.process, folder, loaders)
    return trainer, open_tracker(folder, enabled=True, tags=records.tags(trainer.task))


def one_epoch(trainer: Trainer, tracker: Tracker) -> None:
    """An epoch of training without the evaluation at its end."""
    trainer.train_epoch(tracker)
    trainer.state.finish_epoch()


def _bare_loop(workload: Workload) -> Callable[[], None]:
    model, loader, precision = workload.model(), workload.loader(), workload.precision
    optimizer = optim.build_optimizer(model, workload.config.optim)
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


def _timm_loop(workload: Workload) -> Callable[[], None]:
    model, loader, precision = workload.model(), workload.loader(), workload.precision
    optimizer = create_optimizer_v2(
        model, opt="momentum", lr=workload.config.optim.lr, weight_decay=1e-4, momentum=0.9
    )
    criterion = nn.CrossEntropyLoss()
    scaler = NativeScaler(precision.device_type) if precision.name == "fp16" else None

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
