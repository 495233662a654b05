"""Between two log lines nothing waits for the device: held on a CPU by what torch dispatches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attnorm import convert
from attnorm.norms.statistics import SharedStatistics
from tests.training.memory import CLASSES, make_config, make_trainer, small_network

# Reading a number off the device, and a tensor made of Python numbers, whose copy to the device
# blocks: what .item(), float(), bool(), torch.tensor() and new_tensor() dispatch.
WAITING = ("aten::_local_scalar_dense", "aten::lift_fresh", "aten::nonzero", "aten::is_nonzero")


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        assert function.name() not in WAITING, f"{function.name()} waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("norm", ["bn", "gn", "sn", "an"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"ema.decay": 0.9}, {"grad_accumulation": 2}, {"optim.clip_norm": 1.0}],
    ids=["plain", "ema", "accumulation", "clipping"],
)
def test_a_training_step_reads_nothing_off_the_device(
    norm: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model: nn.Module = small_network(CLASSES)
    if norm != "an":
        model[1] = nn.BatchNorm2d(8)
        model = model if norm == "bn" else convert(model, norm)
    trainer = make_trainer(tmp_path, make_config(**settings), model)
    batches = iter(list(trainer.train_loader.epoch(0)))
    trainer.train_step(batches, measure_gradient=False)  # the optimizer's state is made here
    with NoWaiting():
        trainer.train_step(batches, measure_gradient=False)
        trainer.train_step(batches, measure_gradient=False)
    assert trainer.state.meter.read().first_bad_step is None


def test_the_mode_sees_what_it_is_for() -> None:
    def counted(loss: Tensor) -> Tensor:
        return loss.new_tensor([3])

    for waiting in (lambda x: x.item(), lambda x: bool(x > 0), counted, lambda x: x[x > 0]):
        with pytest.raises(AssertionError, match="waits"), NoWaiting():
            waiting(torch.ones(()))


def test_statistics_shared_between_processes_make_no_tensor_of_a_count(tmp_path: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        mean, var = torch.randn(4, requires_grad=True), torch.rand(4, requires_grad=True)
        group = dist.group.WORLD
        assert group is not None
        with NoWaiting():
            merged, biased, _ = SharedStatistics.apply(mean, var, 6, group)
            (merged.sum() + biased.sum()).backward()
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(merged, mean)
