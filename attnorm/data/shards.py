"""An ImageFolder packed into WebDataset or TFRecord shards, for slow or shared file systems.

The shards are ordinary ones, with the index files of DALI's readers beside them; other tools read
them as they are. Our loaders go by an index of our own (where each image's bytes begin in which
shard), so that counting, shuffling and returning to a position are as exact as with a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attnorm.data.source import few, relabelled
from attnorm.errors import UserError

FORMATS = ("webdataset", "tfrecord")
INDEX = "index.npz"


@dataclass(frozen=True, eq=False)
class Shards:
    """The images of one split, by shard and place in it."""

    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    shards: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """The shard of image ``index``, and its number there."""
        shard = self._shard(index)
        return f"{self.root / self.files[shard]} (image {index - self.shards[shard]})"

    def read(self, index: int) -> NDArray[np.uint8]:
        """The encoded bytes of image ``index``."""
        path = self.root / self.files[self._shard(index)]
        return np.fromfile(
            path, dtype=np.uint8, count=int(self.sizes[index]), offset=int(self.offsets[index])
        )

    def with_classes(self, classes: Sequence[str]) -> Shards:
        """The same images, labelled by their class's place in ``classes``."""
        labels = relabelled(self.labels, self.classes, classes, self.root)
        return replace(self, classes=tuple(classes), labels=labels)

    def renamed(self, classes: Sequence[str]) -> Shards:
        """The same images and labels under other names of classes."""
        return replace(self, classes=tuple(classes))

    def numbered(self) -> Shards:
        """The same images, each labelled by its own number."""
        return replace(self, labels=np.arange(len(self)))

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self.shards, index, side="right")) - 1


def read_shards(root: Path, format: str) -> Shards:
    """The shards in ``root``.

    Raises:
        UserError: there is no index, it is of another format, or a shard is missing or cut short.
    """
    path = root / INDEX
    if not path.is_file():
        raise UserError(
            f"{root} has no {INDEX}, so it holds no whole set of {format} shards: make them with"
            f" scripts/make_shards.py --format {format}, or use data.format=folder."
        )
    with np.load(path) as index:
        stored = str(index["format"])
        if stored != format:
            raise UserError(f"data.format={format}, but {root} has {stored} shards: use that.")
        found = Shards(
            root,
            tuple(index["files"].tolist()),
            tuple(index["classes"].tolist()),
            *(index[name] for name in ("labels", "shards", "offsets", "sizes")),
        )
    ends = np.append(found.shards[1:], len(found)) - 1
    needed = found.offsets[ends] + found.sizes[ends]
    short = [
        name
        for name, size in zip(found.files, needed, strict=True)
        if not (root / name).is_file() or (root / name).stat().st_size < size
    ]
    if short:
        raise UserError(f"{root} lacks {few(short)}, or has it cut short: copy the shards again.")
    return found
