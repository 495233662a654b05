"""Memory is used again when, and only when, nothing shows it any more."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attnorm.data.memory_pool import MemoryPool

SHAPE = (4, 6, 18)
Array = NDArray[np.float32]

# What somebody may hold of a batch after they have let go of the batch itself.
PARTS: dict[str, Callable[[Array], Any]] = {
    "the array": lambda rows: rows,
    "a slice": lambda rows: rows[1:3],
    "a row": lambda rows: rows[3],
    "a row of a slice of a row": lambda rows: rows[1:][2][::2],
    "another shape": lambda rows: rows.reshape(4, 6, 6, 3).transpose(0, 3, 1, 2),
    "other types' eyes": lambda rows: rows.view(np.uint8),
    "the buffer": memoryview,
    "a tensor": torch.from_numpy,
    "a tensor of a row": lambda rows: torch.from_numpy(rows[2]),
    "a view of a tensor": lambda rows: torch.from_numpy(rows).view(4, 6, 6, 3).permute(0, 3, 1, 2),
    "a part of a view of a tensor": lambda rows: torch.from_numpy(rows).flatten(1)[1:, 5],
    "what a tensor detaches": lambda rows: torch.from_numpy(rows).detach(),
    "an array of a tensor": lambda rows: torch.from_numpy(rows)[1].numpy(),
    "a tensor over DLPack": lambda rows: torch.from_dlpack(torch.from_numpy(rows)),
}


def address(rows: Array) -> int:
    return int(rows.__array_interface__["data"][0])


def filled(pool: MemoryPool, value: float) -> Array:
    rows = pool.lease(SHAPE)
    rows[...] = value
    return rows


def values(part: Any) -> set[float]:
    """The numbers that a part of a batch shows."""
    seen = np.asarray(part)
    if seen.dtype == np.uint8:
        seen = np.frombuffer(seen.tobytes(), dtype=np.float32)
    return set(seen.ravel().tolist())


@pytest.mark.parametrize("part", PARTS)
def test_what_is_held_of_a_batch_is_never_written_over(part: str) -> None:
    pool = MemoryPool()
    held = PARTS[part](filled(pool, 1))
    later = [filled(pool, 2) for _ in range(3)]
    del later
    for _ in range(5):
        filled(pool, 3)
    assert values(held) == {1.0}


@pytest.mark.parametrize("part", PARTS)
def test_a_block_is_used_again_once_the_last_part_of_it_is_dropped(part: str) -> None:
    pool = MemoryPool()
    rows = filled(pool, 1)
    place, held = address(rows), PARTS[part](rows)
    del rows
    assert address(pool.lease(SHAPE)) != place
    del held
    assert place in {address(rows) for rows in (pool.lease(SHAPE), pool.lease(SHAPE))}


def test_more_references_to_a_batch_make_no_difference() -> None:
    """No number of references is special: it is the last one that counts."""
    for references in range(1, 12):
        pool = MemoryPool()
        rows = filled(pool, 1)
        place, held = address(rows), [rows] * references
        del rows
        while held:
            assert address(pool.lease(SHAPE)) != place
            held.pop()
        assert place in {address(rows) for rows in (pool.lease(SHAPE), pool.lease(SHAPE))}


def test_a_batch_in_a_circle_of_references_comes_back_when_that_is_collected() -> None:
    pool = MemoryPool()
    circle: list[Any] = [filled(pool, 1)]
    circle.append(circle)
    place = address(circle[0])
    gc.disable()  # so that it is not collected here, by chance
    try:
        del circle
        assert address(pool.lease(SHAPE)) != place
    finally:
        gc.enable()
    gc.collect()
    assert place in {address(rows) for rows in (pool.lease(SHAPE), pool.lease(SHAPE))}


def test_memory_stays_bounded_by_what_is_held_at_once() -> None:
    pool, places, held = MemoryPool(), set(), []
    for number in range(300):
        held = [*held[-2:], torch.from_numpy(filled(pool, number))]  # a queue of three
        places.add(held[-1].data_ptr())
        assert [float(batch[0, 0, 0]) for batch in held] == [
            float(value) for value in range(max(0, number - 2), number + 1)
        ]
    assert len(places) <= 4


def test_shapes_do_not_share_blocks() -> None:
    pool = MemoryPool()
    place = address(pool.lease(SHAPE))
    assert pool.lease((2, 6, 18)).shape == (2, 6, 18)
    assert address(pool.lease(SHAPE)) == place


def test_a_batch_outlives_its_pool() -> None:
    pool = MemoryPool()
    batch = torch.from_numpy(filled(pool, 1))
    del pool
    filled(MemoryPool(), 2)
    assert values(batch) == {1.0}


def test_a_thread_that_still_writes_a_row_keeps_the_batch() -> None:
    pool, may_write, written = MemoryPool(), threading.Event(), threading.Event()

    def write(row: Array) -> None:
        may_write.wait(10)
        row[...] = 7
        written.set()

    rows = filled(pool, 1)
    place = address(rows)
    thread = threading.Thread(target=write, args=(rows[2],))
    thread.start()
    del rows
    others = [filled(pool, 2) for _ in range(3)]
    assert place not in {address(other) for other in others}
    may_write.set()
    assert written.wait(10)
    thread.join()
    assert all(values(other) == {2.0} for other in others)
    del thread
    assert address(pool.lease(SHAPE)) == place


def test_threads_that_share_a_pool_never_share_a_block() -> None:
    pool = MemoryPool()

    def work(own: int) -> bool:
        intact = True
        for _ in range(300):
            batch = torch.from_numpy(filled(pool, own))
            intact &= values(batch[1:3]) == {float(own)}
        return intact

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))
