"""Every random decision of the input pipeline, as a pure function of (seed, epoch, image).

Both loaders ask here, so they draw the same order, crops and flips, on any number of processes and
workers, and any position can be returned to without stored state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CROP_TRIALS = 10  # attempts at a random crop before the central one, as in torchvision
SHARD_WINDOW = 16  # shards whose images are mixed with each other
AUGMENTATION_STREAM = 64  # numbers of an image's stream before those of its augmentation
_DRAWS_PER_TRIAL = 4
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64: every input bit flips each output bit with probability 1/2."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def uniform(
    seed: int, epoch: int, images: NDArray[np.int64], draws: int, first: int = 0
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) of shape (len(images), draws), one SplitMix64 stream per image.

    Args:
        first: how many numbers of each stream come before.
    """
    key = np.array([seed], dtype=np.uint64)
    for part in (np.array([epoch], dtype=np.uint64), images.astype(np.uint64)):
        key = _mix(_mix(key + _GOLDEN) + part)
    counter = np.arange(first + 1, first + draws + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(key[:, None] + counter)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def epoch_order(
    seed: int, epoch: int, num_images: int, shards: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """A permutation of the whole data set, another one every epoch.

    Args:
        shards: the first image of every shard. Images then mix only within windows of
            ``SHARD_WINDOW`` shards, which are drawn anew each epoch, so that a disk or a network
            file system reads few files at a time, each of them whole.
    """
    random = np.random.Generator(np.random.Philox([seed, epoch]))
    if shards is None:
        return random.permutation(num_images)
    members = np.split(np.arange(num_images), shards[1:])
    turns = random.permutation(len(members))
    windows = [turns[start : start + SHARD_WINDOW] for start in range(0, len(turns), SHARD_WINDOW)]
    mixed = [np.concatenate([members[shard] for shard in window]) for window in windows]
    return np.concatenate([random.permutation(window) for window in mixed])


@dataclass(frozen=True)
class Plan:
    """Which images are in which batch of this process, by number.

    Training drops the last incomplete global batch; a global batch holds the same images whatever
    the number of processes that share it. Evaluation deals every image out once, none twice.
    ``shards`` is as in :func:`epoch_order`.

    With ``repeats`` of more than 1 (repeated augmentation, Hoffer et al., 2020) an epoch is as long
    as without, and has fewer images, each of them so many times in a global batch. The copies of
    image i have the numbers i, i + num_images, and so on, so that each draws crops of its own;
    number % num_images is the image.
    """

    num_images: int
    batch_size: int
    training: bool
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    shards: NDArray[np.int64] | None = None
    repeats: int = 1

    def __len__(self) -> int:
        if self.training:
            return self.num_images // (self.batch_size * self.world_size)
        return -(-self._share() // self.batch_size)

    def _share(self) -> int:
        """Images that this process evaluates: at most one more than any other process."""
        return len(range(self.rank, self.num_images, self.world_size))

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The numbers of this process, batch after batch."""
        if not self.training:
            return np.arange(self.rank, self.num_images, self.world_size, dtype=np.int64)
        used = len(self) * self.batch_size * self.world_size
        order = epoch_order(self.seed, epoch, self.num_images, self.shards)
        if self.repeats > 1:
            order = self._repeated(order, used)
        shape = (len(self), self.world_size, self.batch_size)
        return order[:used].reshape(shape)[:, self.rank].reshape(-1)

    def _repeated(self, order: NDArray[np.int64], used: int) -> NDArray[np.int64]:
        """Each image ``repeats`` times; in a global batch all first copies, then all second ones.

        So the copies come to different processes, and neighbours are different images.
        """
        copies = np.arange(self.repeats)
        numbers = order[: -(-used // self.repeats), None] + copies * self.num_images
        batches = numbers.reshape(-1)[:used].reshape(len(self), -1)
        by_copy = (batches // self.num_images).argsort(axis=1, kind="stable")
        return np.take_along_axis(batches, by_copy, axis=1).reshape(-1)

    def batches(self, epoch: int, start_batch: int) -> list[NDArray[np.int64]]:
        """The numbers of every batch from ``start_batch`` on."""
        order = self.order(epoch)
        starts = range(start_batch * self.batch_size, len(order), self.batch_size)
        return [order[start : start + self.batch_size] for start in starts]


@dataclass(frozen=True)
class RandomCrop:
    """Random resized crop (torchvision's algorithm) and horizontal flip."""

    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: bool
    seed: int

    def draw(
        self, epoch: int, images: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Candidate crops (N, CROP_TRIALS, 4) and whether to mirror (N,), before sizes are known.

        A candidate is (height, width) in units of the square root of the image's area, and the
        place of its top left corner as a share of the rows and columns where it can be.
        """
        numbers = uniform(self.seed, epoch, images, 1 + CROP_TRIALS * _DRAWS_PER_TRIAL)
        mirror = (numbers[:, 0] < 0.5) & self.flip
        trials = numbers[:, 1:].reshape(len(images), CROP_TRIALS, _DRAWS_PER_TRIAL)
        area = self.scale[0] + trials[..., 0] * (self.scale[1] - self.scale[0])
        low, high = np.log(self.ratio)
        ratio = np.exp(low + trials[..., 1] * (high - low))
        sides = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], axis=-1)
        return np.concatenate([sides, trials[..., 2:]], axis=-1), mirror

    def boxes(self, candidates: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """(top, left, height, width) of each image's first candidate that lies inside it, (N, 4).

        Args:
            candidates: as drawn, (N, CROP_TRIALS, 4).
            sizes: height and width of each image, (N, 2).
        """
        limits = sizes[:, None, :].astype(np.float64)
        root = np.sqrt(limits[..., :1] * limits[..., 1:])
        sides = np.floor(root * candidates[..., :2] + 0.5)
        inside = (sides > 0) & (sides <= limits)
        fits = inside[..., 0] & inside[..., 1]
        corners = np.floor(candidates[..., 2:] * (limits - sides + 1))
        first = (np.arange(len(sizes)), fits.argmax(axis=1))
        random = np.concatenate([corners[first], sides[first]], axis=1)
        found = fits.any(axis=1, keepdims=True)
        return np.where(found, random, self.central_boxes(sizes)).astype(np.int64)

    def central_boxes(self, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """The largest central crops whose aspect ratio is allowed, for images where none fits."""
        heights, widths = sizes[:, 0], sizes[:, 1]
        crop_heights = np.minimum(heights, np.floor(widths / self.ratio[0] + 0.5))
        crop_widths = np.minimum(widths, np.floor(heights * self.ratio[1] + 0.5))
        tops, lefts = (heights - crop_heights) // 2, (widths - crop_widths) // 2
        return np.stack([tops, lefts, crop_heights, crop_widths], axis=1)


def resized_shape(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with the shorter one at ``short_side``, the longer one rounded down."""
    if height <= width:
        return short_side, short_side * width // height
    return short_side * height // width, short_side


def centre(shape: Sequence[int], crop: int) -> tuple[int, int]:
    """(top, left) of the central square of side ``crop``, an odd pixel over going to the right."""
    return (shape[0] - crop) // 2, (shape[1] - crop) // 2
