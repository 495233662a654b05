"""Export a run's best weights: ``python scripts/export_safetensors.py runs/NAME [TARGET]``.

TARGET (runs/NAME/best.safetensors) holds the weights, and as metadata the config, the class names,
the epoch and the version that wrote it. Use it with arch.pretrained=TARGET, or with any reader of
safetensors.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

import attnorm
from attnorm import config as schema
from attnorm.errors import UserError, exit_on_user_error
from attnorm.files import written_whole
from attnorm.training.checkpoint import load_checkpoint


def export(source: Path, target: Path, allowed: Sequence[str] = ()) -> str:
    """Write ``target`` from a checkpoint, read it back, and say what it holds."""
    if target.exists():
        raise UserError(f"{target} exists: choose another name or remove it.")
    state = load_checkpoint(source)
    config = schema.from_container(state["config"])
    schema.check_names(config, f"checkpoint={source}", allowed)
    weights = {name: tensor.contiguous() for name, tensor in state["model"].items()}
    metadata = {
        "format": "pt",
        "attnorm_version": attnorm.__version__,
        "config": json.dumps(schema.to_container(config)),
        "class_names": json.dumps(state.get("class_names")),
        "epoch": str(state["epoch"]),
    }
    with written_whole(target) as temporary:
        safetensors.torch.save_file(weights, temporary, metadata)
        for name, tensor in safetensors.torch.load_file(temporary).items():
            if not torch.equal(tensor, weights[name]):
                raise RuntimeError(f"{name} did not survive the export")
    return f"{target}: {len(weights)} tensors of {source}, with the run's config as metadata"


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after a mistake."""
    parser = argparse.ArgumentParser(
        "export_safetensors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="a run folder, or a checkpoint in one")
    parser.add_argument("target", type=Path, nargs="?")
    parser.add_argument(
        "--allow", action="append", default=[], help="a class of yours that it may name"
    )
    given = parser.parse_args(arguments)
    source: Path = given.run / "best.pt" if given.run.is_dir() else given.run
    with exit_on_user_error():
        target = given.target or source.with_suffix(".safetensors")
        sys.stdout.write(export(source, target, given.allow) + "\n")
    return 0
