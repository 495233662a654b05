"""``device=mps`` by stand-ins: what is chosen for it, what is refused, and that nothing is float64.

No Apple GPU is here: steps run on the CPU under a mode that refuses what such a GPU does not have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnorm import convert, distributed
from attnorm.distributed import Process, current_process
from attnorm.errors import UserError
from attnorm.run import prepare
from attnorm.training.precision import resolve_precision
from attnorm.training.state import TrainState
from tests.conftest import SHORT, compose_config
from tests.training.memory import CLASSES, make_config, make_trainer, small_network

MPS = torch.device("mps")


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_it_is_chosen_when_it_is_asked_for_and_there(apple: None) -> None:
    assert current_process("mps") == Process(0, 0, 1, MPS)
    assert current_process("auto").device != MPS, "auto takes what has been measured"


def test_a_machine_without_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no Apple GPU"):
        current_process("mps")


def test_several_processes_are_refused(apple: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="device=mps: 2 processes"):
        current_process("mps")


@pytest.mark.parametrize("key", ["compile", "deterministic"])
def test_what_torch_does_not_promise_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"{key}=True .* false with device=mps"):
        compose_config("device=mps", f"{key}=true")


@pytest.mark.parametrize("name", ["fp16", "tf32"])
def test_formats_of_cuda_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"precision={name} needs a CUDA GPU.*device=mps"):
        resolve_precision(name, MPS)


def test_a_run_is_float32_and_contiguous_and_says_so_in_its_config(apple: None) -> None:
    config = compose_config(*SHORT, "device=mps")
    assert config.channels_last
    process = current_process(config.device)
    prepared = prepare.prepare(config, process)
    assert (prepared.precision, prepared.channels_last) == ("fp32", False)
    # A checkpoint of a CUDA GPU, whose config says channels_last, is evaluated likewise.
    placement = prepare.placement_of(config, process)
    assert placement.memory_format == torch.contiguous_format
    assert placement.dtype == torch.float32
    assert prepare.placement_of(config, Process(0, 0, 1, torch.device("cpu"))).channels_last


class NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                assert tensor.dtype != torch.float64, f"{function.name()} makes float64"
        return result


@pytest.mark.parametrize("norm", ["bn", "gn", "sn", "an"])
def test_a_step_and_an_evaluation_make_no_float64(
    norm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distributed.sum_dtype(MPS) == torch.float32
    assert distributed.sum_dtype(torch.device("cuda")) == torch.float64
    monkeypatch.setattr(distributed, "sum_dtype", lambda device: torch.float32)
    model: nn.Module = small_network(CLASSES)
    if norm != "an":
        model[1] = nn.BatchNorm2d(8)
        model = model if norm == "bn" else convert(model, norm)
    config = make_config(**{"ema.decay": 0.9, "optim.clip_norm": 1.0, "tracking.log_every": 1})
    trainer = make_trainer(tmp_path, config, model)
    with NoFloat64():
        batches = trainer.train_loader.epoch(0)
        for _ in range(2):
            trainer.train_step(batches, measure_gradient=True)
        interval = trainer.state.meter.read()
        metrics = trainer.task.evaluate(
            trainer.state.model, trainer.val_loader, trainer.precision, torch.device("cpu")
        )
        content = trainer.state.state_dict()
    assert interval.first_bad_step is None
    assert 0 < interval.loss < 100
    assert metrics["images"] == 25
    # A CUDA GPU's checkpoint is continued, and the other way round.
    content["processes"][0]["meter"]["sums"] = content["processes"][0]["meter"]["sums"].double()
    trainer.state.load_state_dict(content, tmp_path)
    with NoFloat64():
        trainer.train_step(trainer.train_loader.epoch(0), measure_gradient=False)


def test_the_mode_sees_what_it_is_for() -> None:
    with pytest.raises(AssertionError, match="float64"), NoFloat64():
        torch.ones(2).double()


@pytest.mark.parametrize(("device", "waits"), [("cuda", False), ("mps", True), ("cpu", True)])
def test_only_cuda_fetches_memory_while_this_thread_goes_on(device: str, waits: bool) -> None:
    asked: list[tuple[torch.device, bool]] = []

    class Source:
        def to(self, device: torch.device, non_blocking: bool) -> None:
            asked.append((device, not non_blocking))

    source: Any = Source()
    distributed.moved(source, torch.device(device))
    assert asked == [(torch.device(device), waits)]


def test_its_generator_is_saved_and_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state: TrainState = make_trainer(tmp_path, make_config()).state
    stored = torch.arange(3, dtype=torch.uint8)
    restored: list[Tensor] = []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: stored)
    monkeypatch.setattr(torch.mps, "set_rng_state", restored.append)
    on_cpu = state.state_dict()
    assert "random_mps" not in on_cpu["processes"][0]
    # The state alone believes to be elsewhere: its tensors stay where they are.
    state.process = Process(0, 0, 1, MPS)
    content = state.state_dict()
    assert content["processes"][0]["random_mps"] is stored
    monkeypatch.setattr("attnorm.training.state.TrainMeter", lambda *_: state.meter)
    state.load_state_dict(content, tmp_path)
    assert restored == [stored]
    state.load_state_dict(on_cpu, tmp_path)
    assert restored == [stored]
