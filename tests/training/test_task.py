"""A second task through the same trainer: a regression, whose headline is better when higher."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from attnorm import distributed
from attnorm.distributed import Process
from attnorm.tracking import open_tracker
from attnorm.training import checkpoint, records
from attnorm.training.precision import Precision
from attnorm.training.task import BatchLoader, Metric, Metrics, Score, StepOutput, Task
from attnorm.training.trainer import Trainer
from tests.conftest import ROOT
from tests.training.memory import CPU, MemoryLoader, make_config, metrics


class Brightness(Task):
    """The mean of an image, as one number."""

    sums: ClassVar = ("absolute_error",)
    train_metrics: ClassVar = {"absolute_error": Metric("mean error", "error", digits=3)}
    eval_metrics: ClassVar = {"r2": Metric("R²", digits=4)}
    headline: ClassVar = "r2"
    lower_is_better: ClassVar = False

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> StepOutput:
        images, wanted = batch
        errors = model(images).squeeze(1) - wanted
        sums = {"absolute_error": errors.detach().abs().sum()}
        return StepOutput(errors.square().mean(), sums, len(wanted))

    @torch.inference_mode()
    def evaluate(
        self, model: nn.Module, loader: BatchLoader, precision: Precision, device: torch.device
    ) -> Metrics:
        was_training, sums = model.training, torch.zeros(4, dtype=torch.float64)
        model.eval()
        for images, wanted in loader.epoch(0):
            errors = (model(images).squeeze(1) - wanted).double()
            parts = (errors.square().sum(), wanted.sum(), wanted.square().sum())
            sums += torch.stack((*parts, torch.tensor(len(wanted)))).double()
        model.train(was_training)
        residual, total, squares, count = distributed.all_reduce_sum(sums).tolist()
        return {"r2": 1 - residual / (squares - total**2 / count), "images": int(count)}


def _trainer(folder: Path, **overrides: Any) -> tuple[Trainer, Any]:
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    noise = torch.randn(90, 3, 6, 6) + torch.linspace(-1, 1, 90)[:, None, None, None]
    loaders = [
        MemoryLoader(images, images.mean((1, 2, 3)), 10, shuffle)
        for images, shuffle in ((noise[::3], False), (noise[1::3], True))
    ]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 1))
    config = make_config(epochs=4, **{"optim.lr": 0.5, "ema.decay": 0.5, **overrides})
    task, process = Brightness(), Process(0, 0, 1, CPU)
    tracker = open_tracker(folder, enabled=True, tags=records.tags(task))
    return Trainer(config, task, model, loaders[1], loaders[0], process, folder), tracker


def test_a_task_is_trained_ranked_and_recorded_by_what_it_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, tracker = _trainer(tmp_path)
    with caplog.at_level("INFO"):
        result = trainer.fit(tracker)
    values = [line["r2"] for line in metrics(tmp_path, "eval")]
    assert values[-1] != max(values), "the best is not simply the last"
    assert result["best"]["r2"] == max(values)
    assert checkpoint.load_checkpoint(tmp_path / "best.pt")["epoch"] == result["best"]["epoch"]
    assert json.loads((tmp_path / "result.json").read_text())["best"] == result["best"]
    assert "R² " in caplog.text
    assert "mean error 0." in caplog.text
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"train/absolute_error", "val/r2", "val/ema_r2"} <= set(events.Tags()["scalars"])
    assert not any("top" in tag for tag in events.Tags()["scalars"])


def test_the_best_score_is_the_highest_where_the_task_says_so() -> None:
    task = Brightness()
    scores = [Score(epoch, epoch, {"r2": value}) for epoch, value in ((1, 0.3), (2, 0.9), (3, 0.9))]
    assert min(scores, key=lambda score: score.rank(task)) is scores[1], "highest, then earliest"


def test_a_task_of_ones_own_is_continued_bitwise(tmp_path: Path) -> None:
    whole, tracker = _trainer(tmp_path / "whole")
    whole.fit(tracker)
    first, tracker = _trainer(tmp_path / "parts")
    first.train_epoch(tracker)
    first.evaluate_and_save(tracker)
    first.checkpoints.finish()
    tracker.close()
    second, _ = _trainer(tmp_path / "parts")
    path = tmp_path / "parts" / "last.pt"
    second.resume(checkpoint.load_checkpoint(path), path)
    tags = records.tags(second.task)
    place = {"start_step": 3, "start_epoch": 1}
    second.fit(open_tracker(tmp_path / "parts", enabled=True, tags=tags, **place))
    ends = [checkpoint.load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "parts")]
    assert ends[0]["scores"] == ends[1]["scores"]
    for name, value in ends[0]["model"].items():
        assert torch.equal(value, ends[1]["model"][name]), name


@pytest.mark.parametrize("room", ["training", "tracking"])
def test_the_trainer_and_the_tracker_name_no_task(room: str) -> None:
    words = re.compile(r"top.?[15]|cross.?entropy|logits|labels|class_names|argmax", re.IGNORECASE)
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((ROOT / "attnorm" / room).glob("*.py"))
        for line in path.read_text().splitlines()
        if words.search(line)
    ]
    assert found == []
