"""Real image folders: smooth photographs of odd sizes, and every awkward file ImageNet has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from PIL import Image

from attnorm.config import LabelledImagesConfig, LoaderConfig
from attnorm.data import build
from attnorm.data.loader import Loader
from attnorm.data.prepare.shards import write_shards
from attnorm.data.shards import FORMATS
from attnorm.data.workers import nothing_to_collect
from attnorm.distributed import Placement

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _little_to_collect() -> Iterator[None]:
    """A DALI loader that is closed collects garbage: not among all that is imported."""
    with nothing_to_collect():
        yield


def photo(number: int, size: tuple[int, int]) -> Image.Image:
    """A picture with low and high frequencies, so that a shifted or aliased crop shows."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int64)
    noise = random.integers(-20, 21, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def fill(folder: Path, count: int, first: int = 0) -> None:
    """``count`` JPEGs of different sizes and shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        width, height = (int(side) for side in random.integers(40, 160, 2))
        photo(number, (width, height)).save(folder / f"{number:04d}.JPEG", quality=90)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, 50 training and 31 evaluation images.

    Among them are a PNG named .JPEG, a greyscale and a CMYK JPEG, and one with an EXIF rotation.
    """
    root = tmp_path_factory.mktemp("photos")
    for split, counts, first in (("train", (20, 17, 9), 0), ("val", (9, 9, 9), 100)):
        for name, count in zip(("ant", "bee", "cat"), counts, strict=True):
            fill(root / split / name, count, first)
            first += count
        folder = root / split / "bee"
        photo(1, (90, 70)).save(folder / "png_inside.JPEG", format="PNG")
        photo(2, (91, 120)).convert("L").save(folder / "grey.JPEG")
        photo(3, (130, 61)).convert("CMYK").save(folder / "cmyk.JPEG", quality=95)
        rotated = Image.Exif()
        rotated[0x0112] = 6
        photo(4, (100, 50)).save(folder / "rotated.JPEG", exif=rotated)
    return root


@pytest.fixture(scope="session")
def packed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The photos in shards of 7 images, by format."""
    roots = {format: tmp_path_factory.mktemp(format) for format in FORMATS}
    for format, root in roots.items():
        write_shards(photos, root, format, images_per_shard=7, workers=2)
    return roots


class Make(Protocol):
    """Builds a small loader: ``make("torch", training=False, skip_broken=True, ...)``."""

    def __call__(self, name: str, *, training: bool = ..., **options: Any) -> Loader: ...


def _taken(options: dict[str, Any], schema: type[Any]) -> dict[str, Any]:
    """The fields of ``schema`` that are among ``options``, which then lack them."""
    return {spec.name: options.pop(spec.name) for spec in fields(schema) if spec.name in options}


@pytest.fixture
def make(photos: Path) -> Iterator[Make]:
    """Small loaders over ``photos`` (or ``root``), closed after the test."""
    built: list[Loader] = []

    def build_loader(name: str, *, training: bool = True, **options: Any) -> Loader:
        small = {"root": str(photos), "image_size": 48, "resize_size": 56, "workers": 2}
        data = LabelledImagesConfig(
            name="folder", **(small | _taken(options, LabelledImagesConfig))
        )
        where = {"device": CPU, "batch_size": 8} | _taken(options, Placement)
        arguments = (data, LoaderConfig(name=name), Placement(**where))
        if training:
            loader = build.build_train_loader(*arguments, **({"seed": 0} | options))
        else:
            loader = build.build_eval_loader(*arguments, **options)
        built.append(loader)
        return loader

    yield build_loader
    for loader in built:
        loader.close()
