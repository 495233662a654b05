"""A store for a process group in which nothing of an earlier attempt is left.

``torchrun --max-restarts`` keeps one store for all attempts, where the addresses of dead processes
stay: whoever reads them before they are written anew waits for a process that does not exist
(pytorch #135712; TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment avoids it, for
those who know of it). Nor is the count of restarts the same on all nodes. So the processes agree
on a name for their attempt first, and keep everything under it.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

_POLL_SECONDS = 0.01


def fresh_store(timeout: timedelta) -> tuple[Store, int, int]:
    """Meet the other processes of torchrun's environment: (store, rank, world size).

    Raises:
        RuntimeError: they did not all come in time.
    """
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    return PrefixStore(name_attempt(store, rank, world_size, timeout), store), rank, world_size


def name_attempt(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that every process of this attempt gets, and none of another one.

    Rank 0 makes it up. What the others read may be an earlier attempt's, so each answers with the
    name and a word of its own until rank 0 has repeated both: then they have heard each other.

    Raises:
        RuntimeError: they did not all answer in time.
    """
    until = time.monotonic() + timeout.total_seconds()
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("attempt", own)
        for other in range(1, world_size):
            while not (answer := _get(store, f"answer/{other}")).startswith(own):
                _wait(until, f"rank {other}")
            store.set(f"repeated/{other}", answer)
        return own
    while True:
        name = _get(store, "attempt")
        if name:
            store.set(f"answer/{rank}", name + own)
            if _get(store, f"repeated/{rank}") == name + own:
                return name
        _wait(until, "rank 0")


def _get(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _wait(until: float, who: str) -> None:
    if time.monotonic() > until:
        raise RuntimeError(f"{who} did not join the process group in time")
    time.sleep(_POLL_SECONDS)
