"""Train a model: ``python train.py [group=option ...] [key=value ...]``, or under ``torchrun``."""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.table import Table

from attnorm import config as schema
from attnorm import distributed
from attnorm.data import build as data
from attnorm.errors import UserError, exit_on_user_error
from attnorm.models.build import build_model
from attnorm.models.synchronized import synchronize
from attnorm.reporting.histograms import HistogramRecorder
from attnorm.services import check_service
from attnorm.tracking import Tracker, setup_logging, write_text
from attnorm.training import checkpoint, optim
from attnorm.training.interrupts import EXIT_INTERRUPTED, RunInterrupted
from attnorm.training.keeper import load_newest
from attnorm.training.precision import resolve_precision
from attnorm.training.trainer import Trainer

logger = logging.getLogger("attnorm.train")

schema.register_schemas()
OmegaConf.register_new_resolver(
    "rank0", lambda value: value if distributed.rank() == 0 else None, replace=True
)


class Preflight(Callback):
    """Refuse what cannot work before Hydra creates the run directory."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        composed = copy.deepcopy(config)
        with open_dict(composed):
            del composed["hydra"]
        with exit_on_user_error():
            check(prepare(schema.from_omegaconf(composed)), Path(config.hydra.run.dir))


def prepare(config: schema.Config) -> schema.Config:
    """Fill in what depends on this machine and on the data set: precision, number of classes.

    Raises:
        UserError: the device, the data or the model of the config cannot be had.
    """
    process = distributed.current_process(config.device)
    precision = resolve_precision(config.precision, process.device).name
    check_service(config.tracking.service)
    optim.check_implementation(config.optim, process.device)
    if config.compile and config.tracking.histograms_every is not None:
        raise UserError(
            "tracking.histograms_every needs to look into the model, which compile=true does not"
            " allow: use one of the two."
        )
    data.check(
        config.data,
        config.loader,
        batch_size=config.batch_size,
        world_size=process.world_size,
    )
    images = data.num_images(config.data, config.loader, training=True)
    optim.steps_per_epoch(images // (config.batch_size * process.world_size), config)
    classes = data.num_classes(config.data, config.loader)
    with torch.device("meta"):  # costs no memory, and names that do not fit show
        build_model(config.arch, config.norm, classes, load_pretrained=False)
    return replace(config, precision=precision, data=replace(config.data, num_classes=classes))


def check(config: schema.Config, run_dir: Path) -> None:
    """Refuse a run folder that cannot be written or holds another run.

    Raises:
        UserError: with the folder and the way out.
    """
    existing = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    if not existing.is_dir() or not _is_writable(existing):
        raise UserError(
            f"hydra.run.dir={run_dir} cannot be written ({existing} is not a writable folder):"
            " choose another with name= or hydra.run.dir=."
        )
    if config.resume == "never" and (run_dir / "config.yaml").exists():
        raise UserError(
            f"resume=never: {run_dir} holds a run already; choose another name= or remove it."
        )
    newest, _ = load_newest(run_dir)
    if newest is not None:
        stored = newest[1]["config"]
        differences = checkpoint.config_differences(stored, schema.to_container(config))
        if differences:
            raise UserError(
                f"{run_dir} holds a run with another config ({'; '.join(differences)}).\n"
                "Choose another name=, or pass the stored values to continue it."
            )


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def run(config: schema.Config, run_dir: Path, console: Console | None = None) -> dict[str, Any]:
    """Train the run of ``run_dir``, or go on with it; returns what its ``result.json`` holds."""
    console = console or Console()
    process = distributed.current_process(config.device)
    config = prepare(config)
    check(config, run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    setup_logging(run_dir, process.rank, console)
    with distributed.process_group(process, config.timeout_minutes), ExitStack() as loaders:
        trainer = build_trainer(config, process, run_dir, loaders)
        continued = take_up(trainer, run_dir)
        if trainer.state.epoch == config.epochs:
            logger.info("%s is already finished.", run_dir)
            result = finished_result(run_dir, trainer)
        else:
            result = trainer.fit(open_tracker(trainer, console, continued))
        summarize(trainer, console)
        return result


def take_up(trainer: Trainer, run_dir: Path) -> bool:
    """Go on from the newest checkpoint of the run folder, if there is one."""
    newest, damage = load_newest(run_dir)
    for message in damage:
        logger.warning("%s", message)
    if newest is None:
        return False
    path, stored = newest
    trainer.resume(stored, path)
    logger.info(
        "Continuing from %s: epoch %d, step %d of %d.",
        path,
        trainer.state.epoch + 1,
        trainer.state.step_in_epoch,
        trainer.state.steps_per_epoch,
    )
    return True


def open_tracker(trainer: Trainer, console: Console, continued: bool) -> Tracker:
    """The run's record, with its config; rank 0's alone writes."""
    config, state = trainer.config, trainer.state
    tracker = Tracker(
        trainer.run_dir,
        enabled=trainer.process.is_main,
        tensorboard=config.tracking.tensorboard,
        console=console,
        start_step=state.step,
        start_epoch=state.epoch,
        service=config.tracking.service,
    )
    if trainer.process.is_main:
        text = yaml.safe_dump(schema.to_container(config), sort_keys=False)
        write_text(trainer.run_dir / "config.yaml", text)
        tracker.text("config", text)
        tracker.describe(schema.to_container(config))
        if config.tracking.histograms_every is not None:
            every = config.tracking.histograms_every
            HistogramRecorder(state.model, tracker, every, step=lambda: state.step)
    event = {"event": "continued" if continued else "started"}
    tracker.record("event", state.step, {**event, "world_size": trainer.process.world_size})
    return tracker


def finished_result(run_dir: Path, trainer: Trainer) -> dict[str, Any]:
    """What the run wrote when it finished, or the same from its checkpoint."""
    path = run_dir / "result.json"
    if not path.exists():
        return trainer.write_result()
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def build_trainer(
    config: schema.Config, process: distributed.Process, run_dir: Path, loaders: ExitStack
) -> Trainer:
    """Put the three wings together; ``loaders`` closes their workers and pipelines."""
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not config.deterministic
    torch.manual_seed(config.seed)
    assert config.data.num_classes is not None, "prepare() fills it in"
    model = build_model(config.arch, config.norm, config.data.num_classes)
    if config.train.sync_bn and process.world_size > 1:
        model = synchronize(model, process.device)
    placement: dict[str, Any] = {
        "device": process.device,
        "dtype": resolve_precision(config.precision, process.device).input_dtype,
        "channels_last": config.channels_last,
        "rank": process.rank,
        "world_size": process.world_size,
        "batch_size": config.batch_size,
    }
    class_names = data.class_names(config.data, config.loader)
    train = data.build_train_loader(config.data, config.loader, seed=config.seed, **placement)
    val = data.build_eval_loader(config.data, config.loader, class_names=class_names, **placement)
    for loader in (train, val):
        loaders.callback(loader.close)
    logger.info(
        "%s with %s on %s, %s, %s; %s loader (%s); %d + %d images, %d classes",
        config.arch.name,
        config.norm.name,
        f"{process.world_size} × {process.device.type}",
        config.precision,
        f"compiled ({config.compile_mode})" if config.compile else "not compiled",
        train.name,
        train.reason,
        train.num_images,
        val.num_images,
        config.data.num_classes,
    )
    return Trainer(config, model, train, val, class_names, process, run_dir)


def summarize(trainer: Trainer, console: Console) -> None:
    """The final table, on rank 0."""
    if not trainer.process.is_main:
        return
    table = Table(title=str(trainer.run_dir), title_justify="left")
    for column in ("", "epoch", "top-1 error", "top-5 error", "loss"):
        table.add_column(column, justify="left" if not column else "right")
    for name, score in (("best", trainer.state.best), ("final", trainer.state.last)):
        if score is not None:
            top5 = "n/a" if score.top5_error is None else f"{score.top5_error:.2f} %"
            table.add_row(
                name, str(score.epoch), f"{score.top1_error:.2f} %", top5, f"{score.loss:.4f}"
            )
    console.print(table)
    console.print(
        f"python eval.py checkpoint={trainer.run_dir}/best.pt\n"
        f"tensorboard --logdir {trainer.run_dir.parent}",
        highlight=False,
        soft_wrap=True,
    )


@hydra.main(version_base="1.3", config_path=str(schema.config_directory()), config_name="train")
def main(composed: DictConfig) -> None:
    """Exit status: 0 finished, 2 a mistake, 75 stopped by a signal with its checkpoint written."""
    try:
        with exit_on_user_error():
            run(schema.from_omegaconf(composed), Path(HydraConfig.get().run.dir))
    except RunInterrupted as interrupted:
        logger.info("Stopped by %s; the same command continues the run.", interrupted)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
