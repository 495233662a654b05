"""Evaluate a checkpoint: ``python eval.py checkpoint=runs/NAME/best.pt [key=value ...]``."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from attnorm import config as schema
from attnorm import distributed
from attnorm.data import build as data
from attnorm.errors import UserError, exit_on_user_error
from attnorm.models.build import build_model
from attnorm.tracking import write_json
from attnorm.training import checkpoint
from attnorm.training.evaluator import Evaluation, evaluate
from attnorm.training.precision import resolve_precision

HELP = """\
Evaluate a checkpoint on the whole validation set: single-crop top-1 and top-5 error, and loss.

  python eval.py checkpoint=runs/NAME/best.pt [key=value ...]
  torchrun --standalone --nproc-per-node=8 eval.py checkpoint=... [the same]

  checkpoint=PATH     a last.pt or best.pt; the model is built from the config inside it
  output=PATH         where to write the result (default: eval.json beside the checkpoint)
  data=NAME data.KEY= another data set, or another place: data.root=/data/imagenet
  loader=NAME         auto, dali, torch or synthetic (default: auto)
  batch_size=N        images per process and step (default: as trained)
  precision=, device=, channels_last=   as in train.py (default: auto, auto, true)
"""
KEYS = ("data", "loader", "batch_size", "precision", "device", "channels_last")
DEFAULTS = ("loader=auto", "precision=auto", "device=auto")


def parse(arguments: list[str]) -> tuple[Path, Path, list[str]]:
    """Checkpoint, output and config overrides from the command line.

    Raises:
        UserError: an argument that is not key=value, an unknown key, no checkpoint.
    """
    paths: dict[str, Path] = {}
    overrides = list(DEFAULTS)
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator:
            raise UserError(f"{argument!r} is not key=value: see python eval.py --help.")
        if key in ("checkpoint", "output"):
            paths[key] = Path(value)
        elif key.split(".")[0] in KEYS:
            overrides.append(argument)
        else:
            raise UserError(
                f"{key} is not a key of eval.py: use checkpoint, output, {', '.join(KEYS)}"
                " (the model's own config is in the checkpoint)."
            )
    if "checkpoint" not in paths:
        raise UserError("checkpoint is not set: pass checkpoint=runs/NAME/best.pt.")
    return (
        paths["checkpoint"],
        paths.get("output", paths["checkpoint"].parent / "eval.json"),
        overrides,
    )


def run(path: Path, overrides: list[str]) -> Evaluation:
    """Evaluate the checkpoint at ``path`` with the processes of this launch."""
    state = checkpoint.load_checkpoint(path)
    trained = schema.from_container(state["config"])
    config = schema.with_overrides(trained, overrides)
    process = distributed.current_process(config.device)
    precision = resolve_precision(config.precision, process.device)
    class_names = state["class_names"]
    data.check(
        config.data,
        config.loader,
        batch_size=config.batch_size,
        world_size=process.world_size,
        training=False,
    )
    model = build_model(config.arch, config.norm, len(class_names), load_pretrained=False)
    checkpoint.load_weights(model, state["model"], path)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(process.device).to(memory_format=memory_format)
    with distributed.process_group(process):
        loader = data.build_eval_loader(
            config.data,
            config.loader,
            batch_size=config.batch_size,
            device=process.device,
            dtype=precision.input_dtype,
            channels_last=config.channels_last,
            rank=process.rank,
            world_size=process.world_size,
            class_names=class_names,
        )
        with closing(loader):
            return evaluate(model, loader, precision, process.device)


def show(path: Path, evaluation: Evaluation, console: Console) -> None:
    """The result as a table."""
    table = Table(title=str(path), title_justify="left")
    for column in ("top-1 error", "top-5 error", "loss", "images"):
        table.add_column(column, justify="right")
    top5 = evaluation.top5_error
    table.add_row(
        f"{evaluation.top1_error:.2f} %",
        "not applicable" if top5 is None else f"{top5:.2f} %",
        f"{evaluation.loss:.4f}",
        f"{evaluation.images:,}",
    )
    console.print(table)


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(HELP)
        return
    with exit_on_user_error():
        path, output, overrides = parse(arguments)
        evaluation = run(path, overrides)
        if distributed.rank() == 0:
            result: dict[str, Any] = {"checkpoint": str(path), **asdict(evaluation)}
            write_json(output, result)
            console = Console()
            show(path, evaluation, console)
            console.print(f"written to {output}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])
