"""The process group: who am I, exact sums over all processes, one truth for buffers.

Everything works unchanged in a single process without a group.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attnorm.errors import UserError
from attnorm.heartbeat import name_missing_processes
from attnorm.rendezvous import fresh_store


@dataclass(frozen=True)
class Process:
    """One process of a ``torchrun`` launch, or the only one."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def rank() -> int:
    """This process's rank, from torchrun's environment (before any group exists)."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes, from torchrun's environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def current_process(device: str = "auto") -> Process:
    """This process and its device, from torchrun's environment.

    Args:
        device: auto (CUDA where present), cpu or cuda.

    Raises:
        UserError: CUDA was asked for and is missing, or this host has fewer GPUs than processes.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no CUDA device: use device=cpu or auto.")
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if use_cuda and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"device={device}: this host has {torch.cuda.device_count()} GPUs, but torchrun started"
            f" a process with local rank {local_rank}: lower --nproc-per-node."
        )
    chosen = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    return Process(rank(), local_rank, world_size(), chosen)


@contextmanager
def process_group(process: Process, timeout_minutes: float = 10.0) -> Iterator[None]:
    """Join the other processes (NCCL between GPUs, gloo between CPUs) for the time of a block.

    ``timeout_minutes`` is how long they wait for one that does not come.
    """
    if process.device.type == "cuda":
        torch.cuda.set_device(process.device)
    if process.world_size == 1:
        yield
        return
    on_gpu = process.device.type == "cuda"
    timeout = timedelta(minutes=timeout_minutes)
    store, rank, world_size = fresh_store(timeout)
    # gloo beside NCCL: what processes agree on between steps must not wait for the GPU.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        device_id=process.device if on_gpu else None,
        timeout=timeout,
    )
    try:
        with name_missing_processes():
            yield
    finally:
        dist.destroy_process_group()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum ``tensor`` in place over all processes."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def agree(bits: int) -> int:
    """The bitwise or of every process's ``bits``; does not wait for a GPU."""
    if not dist.is_initialized():
        return bits
    shared = torch.tensor(bits)
    dist.all_reduce(shared, dist.ReduceOp.BOR)
    return int(shared)


def broadcast_buffers(model: nn.Module) -> None:
    """Give every process rank 0's buffers.

    Running statistics are not used while training, so rank 0's are the model's and the others'
    need to be replaced only where they would show: before an evaluation.
    """
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def gather_objects(value: Any) -> list[Any]:
    """``value`` of every process, in the order of ranks, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()
