"""What a loader needs of stored images, whether files in folders or records in shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from attnorm.errors import UserError


class ImageSource(Protocol):
    """Encoded images and their labels, by number."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of every image."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of labels."""

    @property
    def shards(self) -> NDArray[np.int64] | None:
        """The first image of every shard; None where each image is a file, at its ``path``."""

    def __len__(self) -> int:
        """How many images there are."""

    def path(self, index: int) -> str:
        """Where image ``index`` is, for messages."""

    def read(self, index: int) -> NDArray[np.uint8]:
        """The encoded bytes of image ``index``."""

    def with_classes(self, classes: Sequence[str]) -> ImageSource:
        """The same images, labelled by their class's place in ``classes``.

        Raises:
            UserError: a class of these images is not among them.
        """

    def renamed(self, classes: Sequence[str]) -> ImageSource:
        """The same images and labels under other names of classes."""

    def numbered(self) -> ImageSource:
        """The same images, each labelled by its own number."""


def relabelled(
    labels: NDArray[np.int64], own: Sequence[str], classes: Sequence[str], root: Path
) -> NDArray[np.int64]:
    """``labels``, which are places in ``own``, as places in ``classes``."""
    unknown = sorted(set(own) - set(classes))
    if unknown:
        raise UserError(
            f"{root} has {len(unknown)} classes that are not classes to train on: {few(unknown)}.\n"
            "Give every split the same classes."
        )
    place = {name: label for label, name in enumerate(classes)}
    return np.array([place[name] for name in own], dtype=np.int64)[labels]


def printable(path: str) -> str:
    """A path for messages and logs, which want UTF-8: file names may hold any byte."""
    return os.fsencode(path).decode(errors="backslashreplace")


def few(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
