"""Statistics and gradients over two real processes (gloo) against one process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attnorm.norms import AttentiveNorm2d
from tests.forked import CONTEXT

CASES: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "relu": {"activation": "relu"},
    "separate": {"separate_attention": True},
    "conv_relu": {"attention": "conv_relu"},
    "released": {"attention": "released"},
}
# Process 0 has three images, process 1 has two.
SHARES = (slice(0, 3), slice(3, 5))


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    spread = torch.arange(1, 6)[:, None, None, None]
    return torch.randn(5, 6, 4, 4) * spread + 3, torch.randn(5, 6, 4, 4)


def layer(name: str) -> AttentiveNorm2d:
    torch.manual_seed(0)
    return AttentiveNorm2d(6, 3, **CASES[name])


def outcome(module: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Any]:
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(dy)
    return {
        "y": y.detach(),
        "dx": x.grad,
        "gradients": [p.grad for p in module.parameters()],
        "buffers": list(module.buffers()),
    }


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    x, dy = (value[SHARES[rank]] for value in batch())
    results: dict[str, Any] = {}
    for name in CASES:
        module = layer(name).synchronize()
        results[name] = outcome(copy.deepcopy(module), x, dy)
        compiled = torch.compile(module, backend="aot_eager") if name == "relu" else None
        if compiled is not None:
            results["compiled"] = outcome(compiled, x, dy)
    wrapped = DistributedDataParallel(layer("relu").synchronize())
    results["ddp"] = outcome(wrapped, x, dy)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    processes = [CONTEXT.Process(target=_process, args=(rank, str(folder))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*CASES, "compiled"])
def test_two_processes_equal_one_on_the_whole_batch(
    results: list[dict[str, Any]], name: str
) -> None:
    expected = outcome(layer("relu" if name == "compiled" else name), *batch())
    ours = [result[name] for result in results]
    for key in ("y", "dx"):
        close(torch.cat([result[key] for result in ours]), expected[key])
    for one, two, whole in zip(*(r["gradients"] for r in ours), expected["gradients"], strict=True):
        close(one + two, whole)
    for result in ours:
        for buffer, whole in zip(result["buffers"], expected["buffers"], strict=True):
            close(buffer, whole)


def test_distributed_data_parallel_averages_the_gradients(results: list[dict[str, Any]]) -> None:
    expected = outcome(layer("relu"), *batch())
    for result in results:
        for ours, whole in zip(result["ddp"]["gradients"], expected["gradients"], strict=True):
            close(ours, whole / 2)


def test_without_synchronization_each_process_would_normalize_alone() -> None:
    """The batch above does tell the two apart."""
    x, dy = batch()
    whole, own = outcome(layer("sigmoid"), x, dy), outcome(layer("sigmoid"), x[:3], dy[:3])
    assert (whole["y"][:3] - own["y"]).abs().max() > 0.1
