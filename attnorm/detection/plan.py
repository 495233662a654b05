"""Which images are in which batch, how they are flipped and how large they become.

All of it is a pure function of (seed, epoch, image), so any position can be returned to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnorm.data.sampling import epoch_order, uniform


@dataclass(frozen=True, eq=False)
class DetectionPlan:
    """The training batches of one process.

    A global batch holds the same images whatever the number of processes that share it, and images
    of one group: wide ones, or high ones, which need less padding. Images that are left of the
    groups when none fills another batch make a last, mixed one if they are enough. An epoch has as
    many batches as without groups, and leaves out as many images.

    Attributes:
        groups: int64 (J,), the group of every image; all 0 for batches of any shape.
        batch_size: images per process.
    """

    groups: NDArray[np.int64]
    batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return len(self.groups) // (self.batch_size * self.world_size)

    def batches(self, epoch: int, start_batch: int = 0) -> list[NDArray[np.int64]]:
        """Numbers of the images of every batch from ``start_batch`` on, (batch_size,) each."""
        own = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return [batch[own] for batch in self.global_batches(epoch)[start_batch:]]

    def global_batches(self, epoch: int) -> NDArray[np.int64]:
        """Those of all processes, (batches, world_size · batch_size).

        As if images came in the order of the epoch, and a batch went as soon as its group fills it.
        """
        size = self.batch_size * self.world_size
        order = epoch_order(self.seed, epoch, len(self.groups))
        group_of = self.groups[order]
        filled, left = [], []
        for group in np.unique(group_of):
            places = np.flatnonzero(group_of == group)
            whole = len(places) // size * size
            filled.append(places[:whole].reshape(-1, size))
            left.append(places[whole:])
        pure = np.concatenate(filled)
        pure = pure[np.argsort(pure[:, -1])]
        rest = np.sort(np.concatenate(left))
        mixed = rest[: len(rest) // size * size].reshape(-1, size)
        batches: NDArray[np.int64] = order[np.concatenate([pure, mixed])]
        return batches


@dataclass(frozen=True)
class EvaluationPlan:
    """Images dealt out to the processes in turns, none of them twice, one in each batch."""

    num_images: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return len(range(self.rank, self.num_images, self.world_size))

    def batches(self, epoch: int, start_batch: int = 0) -> list[NDArray[np.int64]]:
        own = np.arange(self.rank, self.num_images, self.world_size, dtype=np.int64)
        return list(own[start_batch:, None])


def aspect_groups(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """1 for images that are wider than high, 0 for others; from (J, 2) heights and widths."""
    return (sizes[:, 1] > sizes[:, 0]).astype(np.int64)


@dataclass(frozen=True)
class Augmentation:
    """How training images differ from one epoch to the next.

    Attributes:
        flip: mirror every second image.
        short_sides: pixels, one of which an image gets.
    """

    flip: bool
    short_sides: Sequence[int]
    seed: int

    def draw(
        self, epoch: int, images: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Whether to mirror each of the images, and its short side: (N,) both."""
        numbers = uniform(self.seed, epoch, images, 2)
        sides = np.array(self.short_sides, dtype=np.int64)
        chosen = (numbers[:, 1] * len(sides)).astype(np.int64)
        return (numbers[:, 0] < 0.5) & self.flip, sides[chosen]
