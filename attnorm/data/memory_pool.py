"""Blocks of CPU memory that are used again, each with an owner that says when.

A fresh block costs more than filling it: the system clears every page. An old one may be filled
again only when no array and no tensor shows it any more. So a block is never handed out itself but
under a lease, which all views of it refer to; the lease's finalizer, after the last of them is
gone, gives the block back.
"""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import NDArray


class _Lease:
    """What every view of a block that is in use refers to.

    NumPy shortens the chain of what a view of a view refers to, but only past other arrays; and
    ``torch.from_numpy`` refers to the array it was given. So none of them gets past a lease.
    """

    def __init__(self, block: NDArray[np.float32]) -> None:
        self.__array_interface__ = block.__array_interface__


class MemoryPool:
    """As many float32 blocks of each shape as were ever in use at once. Threads may share it."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, ...], list[NDArray[np.float32]]] = {}

    def lease(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """An array with anything in it, nobody else's for as long as it or a view of it is held."""
        free = self._free.setdefault(shape, [])
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(shape, dtype=np.float32)
        lease = _Lease(block)
        # The finalizer also keeps the block alive: the lease knows no more than its address.
        weakref.finalize(lease, free.append, block).atexit = False
        return np.asarray(lease)
