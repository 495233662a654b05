"""The trainer alone, on a small network and images in memory."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attnorm.errors import UserError
from attnorm.training import checkpoint
from attnorm.training.schedule import learning_rate
from tests.training.memory import (
    CLASSES,
    MemoryLoader,
    make_config,
    make_tracker,
    make_trainer,
    metrics,
    stripes,
)


def test_training_is_sgd_on_the_cosine_by_the_book(tmp_path: Path) -> None:
    config = make_config(channels_last="false")
    trainer = make_trainer(tmp_path, config)
    model = copy.deepcopy(trainer.state.model)
    book = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(book, T_max=18)
    for group in book.param_groups:
        group["lr"] = group["initial_lr"] = 2.0 * 10 / 512
    schedule.base_lrs = [2.0 * 10 / 512]
    for epoch in range(3):
        for images, labels in MemoryLoader(*stripes(60, CLASSES), 10, shuffle=True).epoch(epoch):
            book.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            book.step()
            schedule.step()
    trainer.fit(make_tracker(tmp_path))
    for (name, ours), theirs in zip(
        trainer.state.model.named_parameters(), model.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_a_long_gradient_is_shortened_as_torch_does_it(tmp_path: Path) -> None:
    config = make_config(**{"optim.clip_norm": 0.05}, channels_last="false", epochs=1)
    trainer = make_trainer(tmp_path, config)
    model = copy.deepcopy(trainer.state.model)
    book = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-4)
    norms = []
    for step, (images, labels) in enumerate(
        MemoryLoader(*stripes(60, CLASSES), 10, shuffle=True).epoch(0)
    ):
        book.param_groups[0]["lr"] = learning_rate(config.schedule, 2.0 * 10 / 512, step, 6, 6)
        book.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.05)))
        book.step()
    trainer.fit(make_tracker(tmp_path))
    assert min(norms) > 0.05, "the limit was felt"
    for ours, theirs in zip(trainer.state.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    logged = [line["grad_norm"] for line in metrics(tmp_path, "train")]
    assert logged[-1] == pytest.approx(norms[-1], rel=1e-3), "the log has the length before"


def test_it_learns_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_config(epochs=12))
    result = trainer.fit(make_tracker(tmp_path))
    assert result["status"] == "finished"
    assert result["best"]["top1_error"] <= 20
    errors = [line["top1_error"] for line in metrics(tmp_path, "eval")]
    assert len(errors) == 12
    assert result["best"]["top1_error"] == min(errors)
    assert result["best"]["epoch"] == errors.index(min(errors)) + 1
    assert checkpoint.load_checkpoint(tmp_path / "best.pt")["epoch"] == result["best"]["epoch"]
    assert checkpoint.load_checkpoint(tmp_path / "last.pt")["epoch"] == 12
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["best"] == result["best"]
    assert stored["status"] == "finished"


def test_accumulated_micro_batches_equal_one_large_batch_without_batch_statistics(
    tmp_path: Path,
) -> None:
    def network() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, CLASSES))

    common = {"epochs": 1, "optim.lr": 0.5}
    whole = make_trainer(tmp_path / "a", make_config(batch_size=20, **common), network())
    parts = make_trainer(tmp_path / "b", make_config(grad_accumulation=2, **common), network())
    assert whole.base_lr == parts.base_lr
    assert whole.state.steps_per_epoch == parts.state.steps_per_epoch == 3
    whole.fit(make_tracker(tmp_path / "a"))
    parts.fit(make_tracker(tmp_path / "b"))
    for one, other in zip(
        whole.state.model.parameters(), parts.state.model.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_stop_and_continue_equals_uninterrupted(tmp_path: Path) -> None:
    config = make_config(epochs=4)
    uninterrupted = make_trainer(tmp_path / "whole", config)
    uninterrupted.fit(make_tracker(tmp_path / "whole"))

    first = make_trainer(tmp_path / "parts", config)
    tracker = make_tracker(tmp_path / "parts")
    for _ in range(2):
        first.train_epoch(tracker)
        first.evaluate_and_save(tracker)
    first.checkpoints.finish()
    second = make_trainer(tmp_path / "parts", config)
    path = tmp_path / "parts" / "last.pt"
    second.resume(checkpoint.load_checkpoint(path), path)
    assert second.state.epoch == 2
    second.fit(make_tracker(tmp_path / "parts"))

    ends = [checkpoint.load_checkpoint(tmp_path / run / "last.pt") for run in ("whole", "parts")]
    for name, value in ends[0]["model"].items():
        assert torch.equal(value, ends[1]["model"][name]), name
    for key, slots in ends[0]["optimizer"]["state"].items():
        other = ends[1]["optimizer"]["state"][key]
        assert torch.equal(slots["momentum_buffer"], other["momentum_buffer"])
    assert ends[0]["scores"] == ends[1]["scores"]


def test_logged_loss_and_error_are_means_over_the_interval(tmp_path: Path) -> None:
    config = make_config(epochs=1, **{"optim.lr": 1e-12})
    trainer = make_trainer(tmp_path, config)
    model = copy.deepcopy(trainer.state.model).train()
    batches = list(MemoryLoader(*stripes(60, CLASSES), 10, shuffle=True).epoch(0))
    trainer.fit(make_tracker(tmp_path))
    lines = metrics(tmp_path, "train")
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line, pair in zip(lines, (batches[:2], batches[2:4], batches[4:]), strict=True):
        outputs = [(model(images), labels) for images, labels in pair]
        loss = sum(float(F.cross_entropy(out, labels)) for out, labels in outputs) / 2
        right = sum(int((out.argmax(1) == labels).sum()) for out, labels in outputs)
        assert line["loss"] == pytest.approx(loss, rel=1e-5)
        assert line["top1_error"] == pytest.approx(100 * (1 - right / 20))


def test_a_loss_that_is_not_finite_stops_the_run_before_the_checkpoint(tmp_path: Path) -> None:
    config = make_config(epochs=3)
    trainer = make_trainer(tmp_path, config)
    tracker = make_tracker(tmp_path)
    trainer.train_epoch(tracker)
    trainer.evaluate_and_save(tracker)
    trainer.checkpoints.finish()
    trainer.train_loader.images[7] = float("inf")  # type: ignore[attr-defined]
    with pytest.raises(
        UserError, match=r"not finite since step \d+ .*last good .*last\.pt"
    ) as error:
        trainer.fit(tracker)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    bad_step = 6 + int((order == 7).nonzero()) // 10
    assert f"since step {bad_step} " in str(error.value)
    assert metrics(tmp_path, "event")[-1]["event"] == "nonfinite_loss"
    assert checkpoint.load_checkpoint(tmp_path / "last.pt")["epoch"] == 1


def test_another_global_batch_is_refused_on_continuing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_config(epochs=1))
    trainer.fit(make_tracker(tmp_path))
    path = tmp_path / "last.pt"
    other = make_trainer(tmp_path, make_config(epochs=1, grad_accumulation=2))
    with pytest.raises(UserError, match="10 images a step, this launch has 20"):
        other.resume(checkpoint.load_checkpoint(path), path)


def test_label_smoothing_changes_the_loss_as_torch_defines_it(tmp_path: Path) -> None:
    config = make_config(epochs=1, **{"optim.lr": 1e-12, "train.label_smoothing": 0.1})
    trainer = make_trainer(tmp_path, config)
    model = copy.deepcopy(trainer.state.model).train()
    batches = list(MemoryLoader(*stripes(60, CLASSES), 10, shuffle=True).epoch(0))
    trainer.fit(make_tracker(tmp_path))
    losses = [F.cross_entropy(model(x), y, label_smoothing=0.1).item() for x, y in batches[:2]]
    assert metrics(tmp_path, "train")[0]["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler"
)
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_network_trains_like_the_one_it_is_made_of(mode: str, tmp_path: Path) -> None:
    """On a CPU reduce-overhead is a mode without graphs, but asks for the same calls."""
    ends = []
    for name, options in (("eager", {}), ("compiled", {"compile": "true", "compile_mode": mode})):
        trainer = make_trainer(tmp_path / name, make_config(epochs=1, **options))
        trainer.fit(make_tracker(tmp_path / name))
        ends.append(metrics(tmp_path / name, "train"))
    eager, compiled = ends
    assert [line["loss"] for line in compiled] == pytest.approx(
        [line["loss"] for line in eager], rel=1e-4
    )
    state = checkpoint.load_checkpoint(tmp_path / "compiled" / "last.pt")["model"]
    assert not any("_orig_mod" in key for key in state), "checkpoints fit uncompiled networks"
