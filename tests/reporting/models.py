"""Checkpoints of untrained models on digits: what looking at a model needs, in a second."""

from __future__ import annotations

from pathlib import Path

import torch

from attnorm import config as schema
from attnorm import create_model
from attnorm.training import checkpoint
from tests.conftest import SHORT, compose_config


def write_checkpoint(folder: Path, norm: str, *overrides: str) -> Path:
    """``best.pt`` of a MobileNet-v2 with random weights, for ten digits."""
    torch.manual_seed(0)
    config = compose_config(*SHORT, f"norm={norm}", "batch_size=64", *overrides)
    state = {
        "model": create_model("mobilenetv2", norm, num_classes=10).state_dict(),
        "config": schema.to_container(config),
        "class_names": [str(digit) for digit in range(10)],
        "epoch": 1,
        "step": 1,
    }
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save_checkpoint(state, folder / "best.pt")
    return folder / "best.pt"
