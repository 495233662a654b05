"""The process group: who am I, exact sums over all processes, one truth for buffers.

Everything works unchanged in a single process without a group.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store

from attnorm.distributed.heartbeat import name_missing_processes
from attnorm.distributed.rendezvous import fresh_store
from attnorm.errors import UserError

T = TypeVar("T")

_NCCL_WAITS_LONGER = timedelta(minutes=3)


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
        device: auto (CUDA where present, else the CPU), cpu, cuda or mps.

    Raises:
        UserError: the device is missing, or this host has fewer GPUs than processes.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no CUDA device: use device=cpu or auto.")
    if device == "mps":
        return _only_process_on_mps()
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    # Asked of all, not of those without a GPU alone: rank 0 is the one that tells.
    processes = max(local_rank + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if use_cuda and processes > torch.cuda.device_count():
        raise UserError(
            f"device={device}: this host has {torch.cuda.device_count()} GPUs, but torchrun started"
            f" {processes} processes: lower --nproc-per-node."
        )
    chosen = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    return Process(rank(), local_rank, world_size(), chosen)


def _only_process_on_mps() -> Process:
    if not torch.backends.mps.is_available():
        raise UserError("device=mps, but torch sees no Apple GPU: use device=cpu or auto.")
    if world_size() > 1:
        raise UserError(
            f"device=mps: {world_size()} processes, but torch lets them exchange nothing on an"
            " Apple GPU: start one, or use device=cpu."
        )
    return Process(rank(), 0, 1, torch.device("mps"))


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
    timeout = timedelta(minutes=timeout_minutes)
    store, rank, world_size = fresh_store(timeout)
    join(process, store, rank, world_size, timeout)
    try:
        with name_missing_processes():
            yield
    finally:
        dist.destroy_process_group()


def join(process: Process, store: Store, rank: int, world_size: int, timeout: timedelta) -> None:
    """Make the default group of those who meet at ``store``."""
    on_gpu = process.device.type == "cuda"
    # gloo beside NCCL: what processes agree on between steps must not wait for the GPU.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        device_id=process.device if on_gpu else None,
        timeout=timeout,
    )
    if on_gpu:
        _wait_longer_on_gpu(timeout)


def _wait_longer_on_gpu(timeout: timedelta) -> None:
    """Let gloo be the first to miss a process: it says which one, NCCL's watchdog aborts."""
    group = dist.group.WORLD
    assert group is not None
    backend = group._get_backend(torch.device("cuda"))
    backend._set_default_timeout(timeout + _NCCL_WAITS_LONGER)


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


def from_main(make: Callable[[], T]) -> T:
    """What ``make`` gives on rank 0, on every process; no other process calls it.

    For small values. A :class:`UserError` there is raised everywhere, so that all end alike.
    """
    if not dist.is_initialized():
        return make()
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = make()
        except UserError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
    if answer[1] is not None:
        raise UserError(answer[1])
    value: T = answer[0]
    return value


def together(make: Callable[[], T]) -> T:
    """``make()`` on every process; a :class:`UserError` of any of them is raised by all.

    Without it the message of any rank but 0 would be lost, and the others would wait.
    """
    if not dist.is_initialized():
        return make()
    value: T | None = None
    error: str | None = None
    try:
        value = make()
    except UserError as raised:
        error = str(raised)
    for rank, message in enumerate(gather_objects(error)):
        if message is not None:
            raise UserError(message if rank == 0 else f"{message} (rank {rank})")
    return value  # type: ignore[return-value]


def broadcast_bytes(content: bytes | None) -> bytes:
    """Rank 0's ``content`` on every process; what the others pass is ignored."""
    if not dist.is_initialized():
        assert content is not None
        return content
    size = from_main(lambda: len(content or b""))
    if size and content is not None and dist.get_rank() == 0:
        dist.broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8), src=0)
        return content
    buffer = torch.empty(size, dtype=torch.uint8)
    if size:
        dist.broadcast(buffer, src=0)
    return buffer.numpy().tobytes()


def cores_per_process() -> int:
    """CPU cores that this process may use, shared fairly with the others of its machine."""
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // on_this_machine)


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()
