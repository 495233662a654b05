"""A config becomes a run: assembled, continued from its newest checkpoint, trained to its end."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import nn

from attnorm import config as schema
from attnorm import distributed
from attnorm.config import Config
from attnorm.distributed import Placement, Process
from attnorm.files import write_text
from attnorm.models import cpu
from attnorm.models.sync_bn import synchronize
from attnorm.norms.group import keeps_channels_last
from attnorm.run.allocator import keep_freed_memory
from attnorm.run.prepare import (
    check_folder,
    check_same_everywhere,
    check_same_run,
    placement_of,
    prepare,
    task_class,
)
from attnorm.tracking import Tracker, open_tracker, setup_logging
from attnorm.training import records
from attnorm.training.backends import set_backends
from attnorm.training.checkpoints import load_newest
from attnorm.training.histograms import HistogramRecorder
from attnorm.training.precision import has_fast_bfloat16
from attnorm.training.trainer import Trainer

logger = logging.getLogger("attnorm.train")

# What TensorBoard's hparams tab compares runs by.
HPARAMS = (
    *("arch.name", "norm.name", "norm.num_components", "data.name", "data.image_size"),
    *("epochs", "batch_size", "grad_accumulation", "optim.lr", "optim.weight_decay"),
    *("schedule.warmup_epochs", "train.label_smoothing", "precision", "seed"),
)


def run(config: Config, run_dir: Path, console: Console | None = None) -> dict[str, Any]:
    """Train the run of ``run_dir``, or go on with it; returns what its ``result.json`` holds.

    Rank 0 reads the newest checkpoint, once in the whole launch, and all processes continue from
    what it read, or refuse together.

    Raises:
        UserError: the run cannot be had; nothing has been created.
        RunInterrupted: a signal asked to stop; the checkpoint is on the disk.
    """
    keep_freed_memory()
    console, asked = console or Console(), config.precision
    process = distributed.current_process(config.device)
    with distributed.process_group(process, config.timeout_minutes), ExitStack() as loaders:
        config = distributed.together(lambda: _checked(config, process, run_dir))
        check_same_everywhere(config)
        newest, damage = load_newest(run_dir)
        if newest is not None:
            check_same_run(config, newest[1]["config"], run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        setup_logging(run_dir, process.rank, console)
        for message in damage:
            logger.warning("%s", message)
        if asked == "auto" and process.device.type == "cpu" and has_fast_bfloat16(process.device):
            logger.info(
                "This CPU computes in bfloat16: precision=bf16 is faster than fp32 here, by a fifth"
                " to a half, and ended at the same errors where both were measured."
            )
        trainer = build_trainer(config, process, run_dir, loaders)
        continued = newest is not None
        if newest is not None:
            take_up(trainer, *newest)
            newest = None  # as large as the run's state, and needed no more
        if trainer.state.epoch == config.epochs:
            logger.info("%s is already finished.", run_dir)
            result = finished_result(trainer)
        else:
            result = trainer.fit(start_tracking(trainer, console, continued))
        if process.is_main:
            summarize(trainer, console)
        return result


def _checked(config: Config, process: Process, run_dir: Path) -> Config:
    config = prepare(config, process)
    check_folder(config, run_dir)
    return config


def build_trainer(config: Config, process: Process, run_dir: Path, loaders: ExitStack) -> Trainer:
    """Put the three wings together; ``loaders`` closes their workers and pipelines."""
    set_backends(config.precision, config.deterministic)
    torch.manual_seed(config.seed)
    task = task_class(config).from_data(config)
    model = task.build_model(config)
    if config.train.sync_bn and process.world_size > 1:
        model = synchronize(model, process.device)
    if process.device.type == "cpu":
        model = cpu.for_training(model)
        if config.precision == "bf16" and not has_fast_bfloat16(process.device):
            logger.warning(
                "precision=bf16: this CPU has neither AVX512_BF16 nor AMX, so bf16 is slower than"
                " precision=fp32."
            )
    placement = placement_of(config, process)
    if loses_channels_last(model, placement):
        logger.warning(
            "norm=gn: torch %s leaves channels_last in group norm, which costs passes over every"
            " activation: use a newer torch (2.15 keeps it), or compare channels_last=false.",
            torch.__version__,
        )
    train = task.train_loader(config, placement)
    loaders.callback(train.close)
    val = task.eval_loader(config, placement)
    loaders.callback(val.close)
    logger.info(
        "%s with %s on %s, %s, %s; %s loader (%s); %d + %d images%s",
        config.arch.name,
        config.norm.name,
        f"{process.world_size} × {process.device.type}",
        config.precision,
        f"compiled ({config.compile_mode})" if config.compile else "not compiled",
        train.name,
        train.reason,
        train.num_images,
        val.num_images,
        f", {config.data.num_classes} classes" if config.data.num_classes else "",
    )
    return Trainer(config, task, model, train, val, process, run_dir)


def loses_channels_last(model: nn.Module, placement: Placement) -> bool:
    """Whether a layer of the model gives back another memory format than it gets."""
    has_groups = any(isinstance(module, nn.GroupNorm) for module in model.modules())
    return placement.channels_last and has_groups and not keeps_channels_last(placement.device)


def take_up(trainer: Trainer, path: Path, stored: dict[str, Any]) -> None:
    """Go on from a checkpoint of the run."""
    trainer.resume(stored, path)
    logger.info(
        "Continuing from %s: epoch %d, step %d of %d.",
        path,
        trainer.state.epoch + 1,
        trainer.state.step_in_epoch,
        trainer.state.steps_per_epoch,
    )


def start_tracking(trainer: Trainer, console: Console, continued: bool) -> Tracker:
    """The run's record, with its config; rank 0's alone writes."""
    config, state = trainer.config, trainer.state
    container = schema.to_container(config)
    tracker = open_tracker(
        trainer.run_dir,
        enabled=trainer.process.is_main,
        tags=records.tags(trainer.task),
        console=console,
        tensorboard=config.tracking.tensorboard,
        service=config.tracking.service,
        config=container,
        name=config.name,
        hparams=HPARAMS,
        start_step=state.step,
        start_epoch=state.epoch,
    )
    if trainer.process.is_main:
        text = yaml.safe_dump(container, sort_keys=False, allow_unicode=True)
        write_text(trainer.run_dir / "config.yaml", text)
        tracker.text("config", text)
        every = config.tracking.histograms_every
        if every is not None:
            HistogramRecorder(state.model, tracker, every, step=lambda: state.step)
    event = {"event": "continued" if continued else "started"}
    tracker.record("event", state.step, {**event, "world_size": trainer.process.world_size})
    return tracker


def finished_result(trainer: Trainer) -> dict[str, Any]:
    """What the run wrote when it finished, or the same from its checkpoint."""
    path = trainer.run_dir / "result.json"
    if not path.exists():
        return trainer.write_result()
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def summarize(trainer: Trainer, console: Console) -> None:
    """The final table, and the commands that come next."""
    metrics = records.in_lines(trainer.task.eval_metrics)
    table = Table(title=str(trainer.run_dir), title_justify="left")
    for column in ("", "epoch", *(metric.label for metric in metrics.values())):
        table.add_column(column, justify="left" if not column else "right")
    for name, score in (("best", trainer.state.best), ("final", trainer.state.last)):
        if score is not None:
            values = (metric.text(score.metrics[key]) for key, metric in metrics.items())
            table.add_row(name, str(score.epoch), *values)
    console.print(table)
    evaluate = (
        ["python", "eval.py"] if Path(sys.argv[0]).name == "train.py" else ["attnorm", "eval"]
    )
    for command in (
        [*evaluate, f"checkpoint={trainer.run_dir}/best.pt"],
        ["tensorboard", "--logdir", str(trainer.run_dir.parent)],
    ):
        console.print(shlex.join(command), highlight=False, soft_wrap=True, markup=False)
