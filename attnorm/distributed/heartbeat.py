"""Who is missing when processes wait for each other in vain."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

INTERVAL_SECONDS = 1.0


@contextmanager
def name_missing_processes() -> Iterator[None]:
    """Tell the others every second that this process lives, and who does not when they fail.

    Raises:
        RuntimeError: what a collective operation raised, with the ranks that do not answer.
    """
    store = dist.distributed_c10d._get_default_store().clone()
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(store, ended), daemon=True)
    beating.start()
    try:
        yield
    except RuntimeError as error:
        missing = _missing(store)
        if not missing:
            raise
        ranks = ", ".join(f"rank {rank}" for rank in missing)
        raise RuntimeError(
            f"{ranks} no longer answered (stalled, killed, or its host is gone; its log is"
            f" log/rank{missing[0]}.log): {error}"
        ) from error
    finally:
        ended.set()
        beating.join()


def _key(rank: int) -> str:
    return f"attnorm/heartbeat/{rank}"


def _beat(store: Any, ended: threading.Event) -> None:
    beats = 0
    while not ended.wait(INTERVAL_SECONDS):
        beats += 1
        try:
            store.set(_key(dist.get_rank()), str(beats))
        except RuntimeError:  # the store's host is gone: the next collective says so
            return


def _missing(store: Any) -> list[int]:
    """Ranks whose count does not move while ours would move several times."""
    others = [rank for rank in range(dist.get_world_size()) if rank != dist.get_rank()]
    before = [_count(store, rank) for rank in others]
    time.sleep(4 * INTERVAL_SECONDS)
    after = [_count(store, rank) for rank in others]
    return [rank for rank, one, two in zip(others, before, after, strict=True) if one == two]


def _count(store: Any, rank: int) -> bytes | None:
    beats: bytes | None = store.get(_key(rank)) if store.check([_key(rank)]) else None
    return beats
