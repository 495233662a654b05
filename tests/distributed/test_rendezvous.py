"""Meeting again in a store where an earlier attempt has left its keys."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from attnorm.distributed.rendezvous import name_attempt

TIMEOUT = timedelta(seconds=20)


def _attempt(store: HashStore, order: list[int]) -> list[str]:
    """All ranks meet, each a little after the one before it in ``order``."""

    def come(rank: int) -> str:
        time.sleep(0.05 * order.index(rank))
        return name_attempt(store, rank, len(order), TIMEOUT)

    with ThreadPoolExecutor(len(order)) as ranks:
        return list(ranks.map(come, range(len(order))))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_each_attempt_in_the_same_store_gets_a_name_of_its_own(order: list[int]) -> None:
    store = HashStore()
    names = [_attempt(store, order) for _ in range(4)]
    assert all(len(set(attempt)) == 1 for attempt in names), "one name within an attempt"
    assert len({attempt[0] for attempt in names}) == 4, "another one for every attempt"


def test_an_attempt_that_only_some_reached_does_not_confuse_the_next() -> None:
    """Rank 1 died before it joined: rank 0 gave up, and its key has stayed."""
    store = HashStore()
    with pytest.raises(RuntimeError, match="rank 1 did not join the process group in time"):
        name_attempt(store, 0, 2, timedelta(seconds=0.2))
    stale = store.get("attempt").decode()
    for order in ([1, 0], [0, 1]):
        zero, one = _attempt(store, order)
        assert zero == one != stale


def test_a_process_that_waits_for_rank_0_in_vain_says_so() -> None:
    with pytest.raises(RuntimeError, match="rank 0 did not join"):
        name_attempt(HashStore(), 1, 2, timedelta(seconds=0.2))


def test_stale_answers_do_not_let_rank_0_go_on_alone() -> None:
    store = HashStore()
    _attempt(store, [0, 1])
    ended = threading.Event()

    def rank_0() -> None:
        name_attempt(store, 0, 2, TIMEOUT)
        ended.set()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(rank_0)
        assert not ended.wait(0.5)
        name_attempt(store, 1, 2, TIMEOUT)
        assert ended.wait(5)
