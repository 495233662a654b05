"""Where a step's time goes, what limits a run, traces, and the overflows of half precision."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnorm.config import SGDConfig
from attnorm.errors import UserError
from attnorm.training.advice import loader_advice
from attnorm.training.clock import StepClock
from attnorm.training.meter import Interval
from attnorm.training.optim import build_optimizer, check_optimizer
from attnorm.training.step import TrainingStep
from attnorm.training.trainer import Trainer
from tests.training.memory import (
    CPU,
    MemoryLoader,
    make_config,
    make_tracker,
    make_trainer,
    metrics,
)


def test_a_clock_books_the_time_between_marks() -> None:
    clock = StepClock(CPU)
    time.sleep(0.05)
    clock.mark("data")
    time.sleep(0.02)
    clock.mark("forward")
    time.sleep(0.05)
    clock.mark("data")
    booked = clock.read()
    assert booked["data"] == pytest.approx(0.10, abs=0.02)
    assert booked["forward"] == pytest.approx(0.02, abs=0.015)
    clock.restart()
    assert clock.read() == {}


class SlowLoader(MemoryLoader):
    """Every batch takes a while."""

    name = "torch"

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in super().epoch(epoch, start_batch):
            time.sleep(0.05)
            yield batch

    def remedies(self, cores: int) -> list[str]:
        return ["use loader=dali"]


def test_a_slow_loader_shows_in_the_shares_and_is_named_after_the_first_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path, make_config(epochs=2), loader=SlowLoader)
    with caplog.at_level(logging.WARNING):
        trainer.fit(make_tracker(tmp_path))
    for line in metrics(tmp_path, "train")[1:]:  # the first one compiles AN's kernels
        shares = [line[name] for name in ("data_wait", "forward", "backward", "optimizer")]
        assert line["data_wait"] > 0.5
        assert min(shares) > 0
        assert 0.8 < sum(shares) <= 1.0
        assert line["communication"] == 0.0
        assert line["slowest_data_wait"] == line["data_wait"]
    advice = [r.getMessage() for r in caplog.records if "The loader delivers" in r.getMessage()]
    assert len(advice) == 1, "once in a launch"
    assert "use loader=dali" in advice[0]


def _interval(seconds: float, rate: float, waiting: float) -> Interval:
    return Interval(1.0, {}, seconds, rate, {"data": waiting}, waiting, None, 0, 0)


def test_the_advice_names_both_speeds_and_what_the_loader_says() -> None:
    start, limited = _interval(60, 10, 0.9), _interval(10, 1900, 0.25)
    remedies = ["raise data.workers=4 (8 cores for each process)", "use loader=dali"]
    assert loader_advice([start, limited, limited], remedies) == (
        "The loader delivers 1,900 img/s, the model takes 2,533: raise data.workers=4 (8 cores for"
        " each process) or use loader=dali."
    )
    assert loader_advice([start, _interval(10, 1900, 0.05)], remedies) is None
    assert loader_advice([limited], remedies) is None, "it holds the start of the workers"
    assert loader_advice([start, limited], []) is None, "nothing would help"


def test_profiling_writes_a_trace_of_a_few_steps(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_config(profile="true"))
    trainer.fit(make_tracker(tmp_path))
    events = json.loads((tmp_path / "profile" / "rank0.json").read_text())["traceEvents"]
    steps = {e["name"] for e in events if str(e.get("name")).startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{step}" for step in (10, 11, 12, 13)}, "counted from 0"
    assert any(e.get("name") == "aten::convolution" for e in events)
    assert "aten::" in (tmp_path / "profile" / "rank0.txt").read_text()


def test_a_run_too_short_to_be_profiled_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tmp_path, make_config(epochs=1, profile="true")).fit(make_tracker(tmp_path))
    assert "training ended after 6 steps" in caplog.text
    assert not (tmp_path / "profile").exists()


def _with_scaler(folder: Path, **overrides: Any) -> Trainer:
    """fp16's loss scaling around a model in fp32, which needs no GPU.

    The first scale is so large that the scaled loss is infinite. It halves until gradients are
    finite.
    """
    trainer = make_trainer(folder, make_config(epochs=2, **overrides))
    for parameter in trainer.state.model[-1].parameters():  # type: ignore[index]
        parameter.data *= 20
    trainer.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
    return trainer


@pytest.mark.parametrize("fused", [True, False])
def test_overflows_of_the_loss_scaler_are_counted_and_change_nothing(
    fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused SGD skips the step itself; an optimizer like apex's is skipped by the scaler."""
    trainer = _with_scaler(tmp_path, **{"tracking.log_every": 1, "optim.lr": 1e-4})
    if not fused:
        for group in trainer.state.optimizer.param_groups:
            group["fused"] = False
        del trainer.state.optimizer._step_supports_amp_scaling  # type: ignore[attr-defined]
    step, changed = TrainingStep.__call__, []

    def observed(*arguments: Any, **options: Any) -> Tensor | None:
        own = list(trainer.state.model.parameters())
        before = [parameter.detach().clone() for parameter in own]
        norm = step(*arguments, **options)
        changed.append(any(not torch.equal(p, q) for p, q in zip(own, before, strict=True)))
        return norm

    monkeypatch.setattr(TrainingStep, "__call__", observed)
    trainer.fit(make_tracker(tmp_path))
    lines = metrics(tmp_path, "train")
    skipped = [line["skipped_steps"] for line in lines]
    assert skipped[0] == 1
    assert skipped[-1] < 12, "some steps overflow, others do not"
    assert [line["scaler_scale"] for line in lines] == [2.0 ** (127 - n) for n in skipped]
    counted = [now > before for before, now in pairwise([0, *skipped])]
    assert changed == [not overflow for overflow in counted], "a skipped step changes no weight"


def test_too_many_overflows_in_a_row_stop_the_run(tmp_path: Path) -> None:
    trainer = _with_scaler(tmp_path, max_skipped_steps=2, **{"tracking.log_every": 2})
    trainer.train_loader.images *= float("inf")  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="not finite"):
        trainer.fit(make_tracker(tmp_path))
    assert metrics(tmp_path, "event")[-1]["event"] == "nonfinite_loss"


def test_apex_is_refused_where_it_cannot_be_had() -> None:
    config = SGDConfig(implementation="apex")
    with pytest.raises(UserError, match=r"optim\.implementation=apex needs a GPU"):
        check_optimizer(config, CPU)
    with pytest.raises(UserError, match=r"apex cannot be imported .*implementation=torch"):
        check_optimizer(config, torch.device("cuda"))


def test_apex_gets_the_same_groups_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module in apex's place that has its class's signature, since apex needs a CUDA compiler."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    (tmp_path / "apex" / "optimizers.py").write_text(
        "import torch\n"
        "class FusedSGD(torch.optim.SGD):\n"
        "    def __init__(self, params, lr, momentum=0.0, dampening=0.0, weight_decay=0.0,\n"
        "                 nesterov=False, wd_after_momentum=False,\n"
        "                 materialize_master_grads=True, set_grad_none=False):\n"
        "        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    config = SGDConfig(implementation="apex", weight_decay=0.01, norm_weight_decay=False)
    optimizer = build_optimizer(model, config)
    assert type(optimizer).__name__ == "FusedSGD"
    settings = [(g["name"], g["weight_decay"], g["momentum"]) for g in optimizer.param_groups]
    assert settings == [("weights", 0.01, 0.9), ("norm", 0.0, 0.9)]
