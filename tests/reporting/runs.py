"""Run folders as training leaves them, written by hand: known numbers to report on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from attnorm import config as schema
from tests.conftest import composed

STEPS_PER_EPOCH = 2


def with_seed(config: schema.Config, seed: int, **changes: Any) -> schema.Config:
    """Return the config of seed 0 with another seed, also in the run's name."""
    name = config.name.replace("_seed0", f"_seed{seed}")
    return dataclasses.replace(config, seed=seed, name=name, **changes)


def write_run(
    folder: Path,
    arch: str,
    norm: str,
    top1: Sequence[float],
    *,
    seed: int = 0,
    epochs: int = 3,
    speed: float = 100.0,
    hours: float = 2.0,
    world_size: int = 1,
) -> Path:
    """A run on digits with these top-1 errors by epoch, unfinished if fewer than ``epochs``."""
    config = with_seed(
        composed("+experiment=small", f"arch={arch}", f"norm={norm}"), seed, epochs=epochs
    )
    run = folder / f"{arch}_{norm}_seed{seed}"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(schema.to_container(config)))
    lines: list[dict[str, Any]] = [
        {"kind": "event", "step": 0, "event": "started", "world_size": world_size}
    ]
    for epoch, error in enumerate(top1, start=1):
        for step in range(1, STEPS_PER_EPOCH + 1):
            lines.append(_train_line(epoch, step, speed + (10 * step if epoch == 1 else 0)))
        lines.append(
            {
                "kind": "eval",
                "step": epoch * STEPS_PER_EPOCH,
                "epoch": epoch,
                "loss": error / 10,
                "top1_error": error,
                "top5_error": error / 5,
                "images": 360,
            }
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + '{"kind": "train", "st')  # a kill cut it short
    if top1:
        (run / "result.json").write_text(json.dumps(_result(top1, seed, epochs, hours)))
    return run


def _train_line(epoch: int, step: int, speed: float) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": (epoch - 1) * STEPS_PER_EPOCH + step,
        "epoch": epoch,
        "step_in_epoch": step,
        "steps_per_epoch": STEPS_PER_EPOCH,
        "loss": 2.0 / epoch,
        "top1_error": 50.0 / epoch,
        "lr": 0.05,
        "images_per_second": speed,
    }


def _result(top1: Sequence[float], seed: int, epochs: int, hours: float) -> dict[str, Any]:
    best = min(range(len(top1)), key=lambda index: top1[index])

    def score(index: int) -> dict[str, Any]:
        return {
            "epoch": index + 1,
            "step": (index + 1) * STEPS_PER_EPOCH,
            "top1_error": top1[index],
            "top5_error": top1[index] / 5,
            "loss": top1[index] / 10,
            "images": 360,
        }

    return {
        "status": "finished" if len(top1) == epochs else "running",
        "best": score(best),
        "final": score(len(top1) - 1),
        "epochs": len(top1),
        "wall_seconds": 3600 * hours,
        "seed": seed,
    }
