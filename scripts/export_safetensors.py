"""Export a run's best weights: ``python scripts/export_safetensors.py runs/NAME [TARGET]``.

TARGET (runs/NAME/best.safetensors) holds the weights, and as metadata the config, the class names,
the epoch and the version that wrote it. Use it with arch.pretrained=TARGET, or with any reader of
safetensors.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import safetensors.torch
import torch

import attnorm
from attnorm.errors import UserError, exit_on_user_error
from attnorm.training.checkpoint import load_checkpoint


def export(source: Path, target: Path) -> str:
    """Write ``target`` from a checkpoint, read it back, and say what it holds."""
    if target.exists():
        raise UserError(f"{target} exists: choose another name or remove it.")
    state = load_checkpoint(source)
    weights = {name: tensor.contiguous() for name, tensor in state["model"].items()}
    metadata = {
        "format": "pt",
        "attnorm_version": attnorm.__version__,
        "config": json.dumps(state["config"]),
        "class_names": json.dumps(state["class_names"]),
        "epoch": str(state["epoch"]),
    }
    temporary = target.with_name(f".{target.name}.tmp")
    safetensors.torch.save_file(weights, temporary, metadata)
    for name, tensor in safetensors.torch.load_file(temporary).items():
        if not torch.equal(tensor, weights[name]):
            raise RuntimeError(f"{name} did not survive the export")
    temporary.replace(target)
    return f"{target}: {len(weights)} tensors of {source}, with the run's config as metadata"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder, or a checkpoint in one")
    parser.add_argument("target", type=Path, nargs="?")
    arguments = parser.parse_args()
    source: Path = arguments.run / "best.pt" if arguments.run.is_dir() else arguments.run
    with exit_on_user_error():
        print(export(source, arguments.target or source.with_suffix(".safetensors")))


if __name__ == "__main__":
    main()
