"""An ImageFolder on disk: ``root/train/CLASS/*`` and ``root/val/CLASS/*``, scanned once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attnorm.data.source import few, relabelled
from attnorm.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """The images of one split, ordered by class and name.

    Names live in one byte string: a Python list of a million of them would be copied page by page
    into every worker process as its reference counts change.
    """

    root: Path
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    names: bytes
    ends: NDArray[np.int64]
    shards: None = None

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Where image ``index`` is."""
        start = self.ends[index - 1] if index else 0
        return f"{self.root}/{os.fsdecode(self.names[start : self.ends[index]])}"

    def read(self, index: int) -> NDArray[np.uint8]:
        """The bytes of image ``index`` as they are on disk."""
        return np.fromfile(self.path(index), dtype=np.uint8)

    def with_classes(self, classes: Sequence[str]) -> ImageFolder:
        """The same images, labelled by their class's place in ``classes``.

        Raises:
            UserError: a class of this folder is not among them.
        """
        labels = relabelled(self.labels, self.classes, classes, self.root)
        return replace(self, classes=tuple(classes), labels=labels)

    def renamed(self, classes: Sequence[str]) -> ImageFolder:
        """The same images and labels under other names of classes."""
        return replace(self, classes=tuple(classes))

    def numbered(self) -> ImageFolder:
        """The same images, each labelled by its own number."""
        return replace(self, labels=np.arange(len(self)))


def scan(root: Path) -> ImageFolder:
    """Every image below ``root/CLASS``, at any depth.

    Raises:
        UserError: no class folder, or one without an image.
    """
    classes = sorted(
        entry.name
        for entry in os.scandir(root)
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if not classes:
        raise UserError(
            f"{root} has no class folders and so no image: put the images of each class into"
            f" a folder of their own, {root / 'CLASS'}."
        )
    found = [_images_below(root, name) for name in classes]
    empty = [name for name, images in zip(classes, found, strict=True) if not images]
    if len(empty) == len(classes):
        raise UserError(
            f"{root} has {len(classes)} class folders but no image in them (looked for"
            f" {', '.join(EXTENSIONS)})."
        )
    if empty:
        raise UserError(
            f"{root} has {len(empty)} class folders without an image: {few(empty)}.\n"
            f"Remove them, or fill them with files ending in {', '.join(EXTENSIONS)}."
        )
    names = [os.fsencode(image) for images in found for image in images]
    return ImageFolder(
        root=root,
        classes=tuple(classes),
        labels=np.repeat(np.arange(len(classes)), [len(images) for images in found]),
        names=b"".join(names),
        ends=np.cumsum([len(name) for name in names]),
    )


def _images_below(root: Path, class_name: str) -> list[str]:
    found = []
    for folder, _, files in os.walk(root / class_name, followlinks=True):
        inside = os.path.relpath(folder, root)
        found += [
            f"{inside}/{name}"
            for name in files
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(found)
