"""Shards give every loader the folder's images, or a word on what is wrong with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from attnorm.data.prepare.shards import write_shards
from attnorm.data.sampling import SHARD_WINDOW, epoch_order
from attnorm.data.shards import FORMATS, read_shards
from attnorm.errors import UserError
from tests.data.conftest import Make


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["torch", "dali"])
def test_every_loader_evaluates_shards_as_it_does_the_folder(
    make: Make, packed: dict[str, Path], name: str, format: str
) -> None:
    expected = list(make(name, training=False).epoch(0))
    sharded = make(name, training=False, root=str(packed[format]), format=format)
    for (images, labels), (others, other_labels) in zip(expected, sharded.epoch(0), strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_both_loaders_and_formats_train_on_the_same_batches(
    make: Make, packed: dict[str, Path]
) -> None:
    loaders = [
        make(name, root=str(packed[format]), format=format)
        for name in ("torch", "dali")
        for format in FORMATS
    ]
    seen = 0
    for (images, labels), *others in zip(*(loader.epoch(1) for loader in loaders), strict=True):
        seen += len(labels)
        for other, other_labels in others:
            assert torch.allclose(images, other, atol=1e-4)
            assert torch.equal(labels, other_labels)
    assert seen == 48
    rest = list(loaders[1].epoch(1, 4))
    again = list(loaders[3].epoch(1, 4))
    assert all(torch.allclose(a, b, atol=1e-4) for (a, _), (b, _) in zip(rest, again, strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_processes_cover_every_evaluation_image_of_shards_once(
    make: Make, packed: dict[str, Path], world_size: int
) -> None:
    found = []
    for rank in range(world_size):
        loader = make(
            "torch",
            training=False,
            workers=0,
            root=str(packed["webdataset"]),
            format="webdataset",
            rank=rank,
            world_size=world_size,
        )
        found += [image.numpy().tobytes() for images, _ in loader.epoch(0) for image in images]
    assert len(found) == len(set(found)) == 31


def test_an_epoch_mixes_a_window_of_shards_at_a_time() -> None:
    starts = np.arange(0, 4000, 100)
    orders = [epoch_order(0, epoch, 4000, starts) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(4000))
        shards_in_use = [len(set(order[at : at + 1600] // 100)) for at in (0, 1600)]
        assert shards_in_use == [SHARD_WINDOW] * 2
        assert len(set(order[:64] // 100)) > SHARD_WINDOW / 2
    assert set(orders[0][:1600] // 100) != set(orders[1][:1600] // 100)


@pytest.mark.parametrize("name", ["torch", "dali"])
def test_a_broken_image_in_a_shard_is_named_or_replaced(
    make: Make, photos: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(photos, tmp_path / "folder")
    (tmp_path / "folder" / "val" / "ant" / "0103.JPEG").write_bytes(b"\xff\xd8\xff nothing more")
    write_shards(tmp_path / "folder", tmp_path / "packed", "tfrecord", 7, 1)
    options = {"training": False, "root": str(tmp_path / "packed"), "format": "tfrecord"}
    with pytest.raises(UserError, match=r"val-00000\.tfrecord \(image 3\) cannot be decoded"):
        list(make(name, **options).epoch(0))
    loader = make(name, **options, skip_broken=True)
    images = torch.cat([images for images, _ in loader.epoch(0)])
    assert torch.equal(images[3], images[4])
    assert loader.skipped == 1


def test_missing_cut_or_other_shards_are_named(packed: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.format=tfrecord, but .* has webdataset shards"):
        read_shards(packed["webdataset"] / "val", "tfrecord")
    with pytest.raises(UserError, match=r"no index\.npz.*make_shards"):
        read_shards(tmp_path, "tfrecord")
    copy = tmp_path / "copy"
    shutil.copytree(packed["webdataset"] / "val", copy)
    shard = copy / "val-00001.tar"
    shard.write_bytes(shard.read_bytes()[:-30_000])
    with pytest.raises(UserError, match=r"lacks val-00001\.tar, or has it cut short"):
        read_shards(copy, "webdataset")
