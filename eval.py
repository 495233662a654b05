"""Evaluate a checkpoint: ``python eval.py checkpoint=runs/NAME/best.pt [key=value ...]``."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict, dataclass
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
  weights=NAME        model (default), or ema: their moving average, of a run with ema.decay
  output=PATH         where to write the result (default: eval.json beside the checkpoint)
  data=NAME data.KEY= another data set, or another place: data.root=/data/imagenet
  loader=NAME         auto, dali, torch or synthetic (default: auto)
  batch_size=N        images per process and step (default: as trained)
  precision=, device=, channels_last=   as in train.py (default: auto, auto, true)
"""
OWN_KEYS = ("checkpoint", "output", "weights")
KEYS = ("data", "loader", "batch_size", "precision", "device", "channels_last")
DEFAULTS = ("loader=auto", "precision=auto", "device=auto")


@dataclass(frozen=True)
class Request:
    """What to evaluate, where to write the result, and the config's overrides."""

    checkpoint: Path
    output: Path
    weights: str
    overrides: list[str]


def parse(arguments: list[str]) -> Request:
    """The command line.

    Raises:
        UserError: an argument that is not key=value, an unknown key, no checkpoint.
    """
    own: dict[str, str] = {}
    overrides = list(DEFAULTS)
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator:
            raise UserError(f"{argument!r} is not key=value: see python eval.py --help.")
        if key in OWN_KEYS:
            own[key] = value
        elif key.split(".")[0] in KEYS:
            overrides.append(argument)
        else:
            raise UserError(
                f"{key} is not a key of eval.py: use {', '.join(OWN_KEYS + KEYS)}"
                " (the model's own config is in the checkpoint)."
            )
    if "checkpoint" not in own:
        raise UserError("checkpoint is not set: pass checkpoint=runs/NAME/best.pt.")
    path, weights = Path(own["checkpoint"]), own.get("weights", "model")
    if weights not in ("model", "ema"):
        raise UserError(f"weights={weights}: choose model or ema.")
    return Request(path, Path(own.get("output", path.parent / "eval.json")), weights, overrides)


def run(path: Path, overrides: list[str], weights: str = "model") -> Evaluation:
    """Evaluate the checkpoint at ``path`` with the processes of this launch.

    Args:
        weights: model, or ema for their moving average.
    """
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
    checkpoint.load_weights(model, stored_weights(state, weights, path), path)
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


def stored_weights(state: dict[str, Any], weights: str, path: Path) -> dict[str, Any]:
    """The model's weights in a checkpoint, or their moving average.

    Raises:
        UserError: the run kept no average.
    """
    stored: dict[str, Any] | None = state["model"]
    if weights == "ema":
        stored = state["ema"] and state["ema"]["model"]
    if stored is None:
        raise UserError(
            f"weights=ema, but checkpoint={path} has no averaged weights: evaluate weights=model,"
            " or train with ema.decay=0.9999 or the like."
        )
    return stored


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
        request = parse(arguments)
        evaluation = run(request.checkpoint, request.overrides, request.weights)
        if distributed.rank() == 0:
            source = {"checkpoint": str(request.checkpoint), "weights": request.weights}
            write_json(request.output, {**source, **asdict(evaluation)})
            console = Console()
            show(request.checkpoint, evaluation, console)
            console.print(f"written to {request.output}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])
