"""Run folders of detectors as training leaves them, written by hand: known numbers to report on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from attnorm import config as schema
from attnorm.files import write_json
from attnorm.reporting.detection_tables import details
from tests.conftest import composed
from tests.reporting.runs import with_seed

STEPS = 2  # of an epoch


def write_detector(
    folder: Path,
    experiment: str,
    box_ap: Sequence[float],
    *overrides: str,
    seed: int = 0,
    epochs: int = 3,
    data: str = "digit_scenes",
) -> Path:
    """A run with these box APs by epoch, unfinished if fewer than ``epochs``; masks have 2 less."""
    config = with_seed(
        composed(f"+experiment={experiment}", f"data={data}", *overrides), seed, epochs=epochs
    )
    name = "_".join((experiment.replace("/", "_"), data, *overrides, f"seed{seed}"))
    run = folder / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(schema.to_container(config)))
    lines: list[dict[str, Any]] = [{"kind": "event", "step": 0, "event": "started"}]
    lines[0]["world_size"] = 4
    for epoch, value in enumerate(box_ap, start=1):
        for step in range(1, STEPS + 1):
            lines.append(_train_line(epoch, step))
        lines.append({"kind": "eval", **_score(epoch, value)})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if box_ap:
        best = max(range(len(box_ap)), key=lambda index: box_ap[index])
        result = {
            "status": "finished" if len(box_ap) == epochs else "running",
            "best": _score(best + 1, box_ap[best]),
            "epochs": len(box_ap),
            "wall_seconds": 7200,
            "seed": seed,
        }
        (run / "result.json").write_text(json.dumps(result))
    return run


def write_details(
    run: Path, classes: Mapping[str, float | None], box_curve: float = 50.0, pictures: int = 0
) -> None:
    """As if the run's best checkpoint had been evaluated in detail; masks have 1 less a class."""
    result = json.loads((run / "result.json").read_text())
    identity = {key: result["best"][key] for key in ("step", "box_AP")}
    masks = {name: None if value is None else value - 1 for name, value in classes.items()}
    curves = dict.fromkeys(details.CURVES, [box_curve] * 101)
    names = [f"{number}.jpg" for number in range(pictures)]
    (run / details.PICTURES).mkdir(exist_ok=True)
    for name in names:
        Image.fromarray(np.full((40, 60, 3), 90, dtype=np.uint8)).save(
            run / details.PICTURES / name
        )
    content = {
        "classes": {"box": classes, "mask": masks},
        "curves": {"box": curves, "mask": curves},
        "pictures": names,
    }
    write_json(run / details.FILE, {"best": {**identity, "seed": result["seed"]}, **content})


def _score(epoch: int, box_ap: float) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "step": epoch * STEPS,
        **{"box_AP": box_ap, "box_AP50": box_ap + 20, "box_AP75": box_ap + 5},
        **{"mask_AP": box_ap - 2, "mask_AP50": box_ap + 18, "mask_AP75": box_ap + 3},
        "images": 200,
    }


def _train_line(epoch: int, step: int) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": (epoch - 1) * STEPS + step,
        "epoch": epoch,
        "step_in_epoch": step,
        "steps_per_epoch": STEPS,
        "loss": 2.0 / epoch,
        "loss_mask": 0.7 / epoch,
        "lr": 0.02,
        "images_per_second": 8.0 + epoch,
    }
