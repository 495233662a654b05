"""The photographs that benchmarks read: which of them, and as what data set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from attnorm.config import LabelledImagesConfig
from attnorm.data.folder import ImageFolder


def link(photos: ImageFolder, order: Iterable[int], target: Path) -> None:
    """Links below ``target/CLASS`` to the photographs of these numbers, which may repeat."""
    for number, wanted in enumerate(order):
        photo = Path(photos.path(wanted))
        place = target / photo.parent.name / f"{number:06d}{photo.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(photo.resolve())


def photo_data(root: Path, image_size: int, workers: int) -> LabelledImagesConfig:
    """The folder ``root`` in a benchmark's image size, with its number of workers."""
    return LabelledImagesConfig(
        name="photos",
        root=str(root),
        image_size=image_size,
        resize_size=image_size,
        workers=workers,
    )
