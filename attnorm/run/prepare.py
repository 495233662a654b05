"""What has to be true before a run exists, asked once."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from attnorm import config as schema
from attnorm import distributed
from attnorm.config import Config
from attnorm.distributed import Placement, Process, has_fast_channels_last
from attnorm.errors import UserError
from attnorm.tracking import check_service
from attnorm.training import optim
from attnorm.training.checkpoint import config_differences
from attnorm.training.precision import resolve_precision
from attnorm.training.schedule import check_schedule
from attnorm.training.task import ConfigurableTask


def task_class(config: Config) -> type[ConfigurableTask]:
    """The class that ``task.task_class`` names.

    Raises:
        UserError: it cannot be imported, or is no task.
    """
    path = config.task.task_class
    found = schema.locate(path, "task.task_class")
    if not (isinstance(found, type) and issubclass(found, ConfigurableTask)):
        raise UserError(
            f"task.task_class={path} is not a ConfigurableTask (attnorm.training.task)."
        )
    return found


def placement_of(config: Config, process: Process) -> Placement:
    """Where the batches of this process go.

    Raises:
        UserError: the precision cannot be had on the device.
    """
    return Placement(
        device=process.device,
        batch_size=config.batch_size,
        dtype=resolve_precision(config.precision, process.device).input_dtype,
        channels_last=config.channels_last and has_fast_channels_last(process.device),
        rank=process.rank,
        world_size=process.world_size,
    )


def prepare(config: Config, process: Process) -> Config:
    """Fill in what this machine and the data decide: precision, layout, number of classes.

    Raises:
        UserError: the device, the data or the model of the config cannot be had.
    """
    precision = resolve_precision(config.precision, process.device).name
    channels_last = config.channels_last and has_fast_channels_last(process.device)
    config = replace(config, precision=precision, channels_last=channels_last)
    check_service(config.tracking.service)
    optim.check_optimizer(config.optim, process.device)
    check_schedule(config.schedule)
    task = task_class(config)
    config = task.check(config, placement_of(config, process))
    batches = task.num_train_images(config) // (config.batch_size * process.world_size)
    optim.steps_per_epoch(batches, config)
    return config


def check_folder(config: Config, run_dir: Path) -> None:
    """Refuse a run folder that cannot be written, or that must not be there.

    Raises:
        UserError: with the folder and the way out.
    """
    existing = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"hydra.run.dir={run_dir} cannot be written ({existing} is not a writable folder):"
            " choose another with name= or hydra.run.dir=."
        )
    if config.resume == "never" and (run_dir / "config.yaml").exists():
        raise UserError(
            f"resume=never: {run_dir} holds a run already; choose another name= or remove it."
        )


def check_same_everywhere(config: Config) -> None:
    """Refuse processes whose configs differ in what changes a result. Collective.

    Raises:
        UserError: with the first process that differs, and in what.
    """
    configs = distributed.gather_objects(schema.to_container(config))
    for rank, other in enumerate(configs):
        differences = config_differences(configs[0], other)
        if differences:
            raise UserError(
                f"rank {rank} has another config than rank 0 ({'; '.join(differences)}): launch"
                " the same command everywhere, on the same data."
            )


def check_same_run(config: Config, stored: dict[str, Any], run_dir: Path) -> None:
    """Refuse to continue a run under a config that would change its result.

    Raises:
        UserError: with the fields that differ.
    """
    known = schema.to_container(schema.from_container(stored))
    differences = config_differences(known, schema.to_container(config))
    if differences:
        raise UserError(
            f"{run_dir} holds a run with another config ({'; '.join(differences)}).\n"
            "Choose another name=, or pass the stored values to continue it."
        )
