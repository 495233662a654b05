"""Batches of real JPEGs: their targets, their order, and what happens to broken pictures."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from attnorm.config import CocoConfig
from attnorm.data import worker_batches
from attnorm.detection import loader as detection_loader
from attnorm.detection.batch import DetectionBatch
from attnorm.detection.loader import DetectionLoader, categories, num_train_images
from attnorm.errors import UserError
from tests.detection.coco_files import (
    TRAIN_SIZES,
    VAL_SIZES,
    config,
    placement,
    write_coco,
    write_maps,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A data set that the test may damage."""
    return write_coco(tmp_path)


def training(
    settings: CocoConfig,
    batch_size: int = 2,
    seed: int = 0,
    semantic_classes: int = 255,
    **place: Any,
) -> Any:
    where = placement(batch_size, **place)
    return detection_loader.train_loader(
        settings, where, seed=seed, prefetch=2, semantic_classes=semantic_classes
    )


def evaluation(settings: CocoConfig, **place: Any) -> DetectionLoader:
    return detection_loader.eval_loader(settings, placement(**place), prefetch=2)


def tensors(batch: DetectionBatch) -> Iterator[torch.Tensor]:
    yield batch.images
    if batch.semantic is not None:
        yield batch.semantic
    for target in batch.targets or []:
        yield from (target.boxes, target.labels, target.masks.pixels, target.masks.windows)


def same(first: DetectionBatch, second: DetectionBatch) -> bool:
    """To the last bit."""
    plain = ("sizes", "original_sizes", "image_ids")
    pairs = zip(tensors(first), tensors(second), strict=True)
    return all(getattr(first, name) == getattr(second, name) for name in plain) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs
    )


def all_same(first: list[DetectionBatch], second: list[DetectionBatch]) -> bool:
    return len(first) == len(second) and all(map(same, first, second))


def test_the_classes_and_the_images_are_those_of_the_training_half(root: Path) -> None:
    assert categories(config(root)) == (["cup", "plate", "spoon"], [3, 17, 90])
    assert num_train_images(config(root)) == len(TRAIN_SIZES) - 1
    loader = training(config(root))
    assert (loader.num_images, len(loader)) == (7, 3)
    assert loader.annotations == root / "annotations" / "instances_train2017.json"


@pytest.mark.parametrize("flip", [False, True])
def test_images_and_targets_are_those_of_torchvision(root: Path, flip: bool) -> None:
    """Pictures, boxes and masks by Pillow, pycocotools and torchvision's own transform."""
    settings = config(root, horizontal_flip=flip)
    loader = training(settings)
    flipped = 0
    transform = GeneralizedRCNNTransform(64, 100, settings.mean, settings.std).eval()
    for batch in loader.epoch(0):
        for number, (image, size, target) in enumerate(
            zip(batch.images, batch.sizes, batch.targets, strict=True)
        ):
            found = image[:, : size[0], : size[1]]
            picture, truth = _reference(loader, batch.image_ids[number])
            variants = []
            for mirrored in (False, True):
                values = _mirrored(picture, truth) if mirrored else (picture, truth)
                images, targets = transform([values[0]], [values[1]])
                expected = images.tensors[0, :, : size[0], : size[1]]
                assert images.image_sizes == [size]
                variants.append((float((found - expected).abs().max()), targets[0], mirrored))
            difference, expected_target, mirrored = min(variants, key=lambda variant: variant[0])
            assert difference < 1.01 / 255 / min(settings.std)
            flipped += mirrored
            torch.testing.assert_close(target.boxes, expected_target["boxes"])
            assert target.labels.tolist() == truth["labels"].tolist()
            for bitmap, window, mask in zip(
                target.masks.bitmaps(),
                target.masks.windows.tolist(),
                expected_target["masks"],
                strict=True,
            ):
                x0, y0, x1, y1 = window
                full = torch.zeros(size, dtype=torch.uint8)
                full[y0:y1, x0:x1] = bitmap
                overlap = (full & mask).sum() / (full | mask).sum()
                assert overlap > 0.85, "torchvision draws first and resizes then"
    assert flipped == 0 if not flip else 0 < flipped < 6


def _reference(loader: DetectionLoader, image_id: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Picture and targets of an image that is not resized, crowds aside."""
    data = loader.data
    index = data.image_ids.tolist().index(image_id)
    with Image.open(data.path(index)) as opened:
        picture = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1) / 255
    masks, boxes, labels = [], [], []
    for thing in range(data.offsets[index], data.offsets[index + 1]):
        if data.crowd[thing]:
            continue
        size = data.size(index)
        rings = [ring.ravel().tolist() for ring in data.segmentations.polygons(thing)]
        code: Any = {"size": list(size), "counts": data.segmentations.code(thing)}
        if rings:
            code = coco_mask.merge(coco_mask.frPyObjects(rings, *size))
        masks.append(torch.from_numpy(coco_mask.decode(code)))
        boxes.append(torch.from_numpy(data.boxes[thing]).float())
        labels.append(int(data.labels[thing]))
    truth = {"boxes": torch.stack(boxes), "masks": torch.stack(masks)}
    return picture, {**truth, "labels": torch.tensor(labels)}


def _mirrored(picture: torch.Tensor, truth: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    boxes = truth["boxes"][:, [2, 1, 0, 3]].clone()
    boxes[:, [0, 2]] = picture.shape[2] - boxes[:, [0, 2]]
    return picture.flip(2), {**truth, "boxes": boxes, "masks": truth["masks"].flip(2)}


def test_batches_are_padded_and_say_what_is_in_them(root: Path) -> None:
    loader = training(config(root, train_sizes=[64, 72], max_size=110))
    seen = set()
    for batch in [*loader.epoch(0), *loader.epoch(1)]:
        assert batch.images.shape[2] % 32 == batch.images.shape[3] % 32 == 0
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert len(batch.targets) == len(batch.sizes) == len(batch.image_ids) == 2
        for image, (h, w), original in zip(
            batch.images, batch.sizes, batch.original_sizes, strict=True
        ):
            assert not image[:, h:].any()
            assert not image[:, :, w:].any()
            assert image[:, h - 1, w - 1].any()
            assert original in TRAIN_SIZES
            seen.add(min(h, w))
        assert batch.semantic is None
    assert {64, 72} <= seen


@pytest.mark.parametrize("semantic", [None, "things"])
def test_the_number_of_workers_changes_nothing(root: Path, semantic: str | None) -> None:
    settings = config(root, semantic=semantic)
    expected = list(training(settings).epoch(1))
    for workers in (1, 2):
        loader = training(replace(settings, workers=workers))
        assert all_same(list(loader.epoch(1)), expected)
        loader.close()
    found = list(evaluation(replace(settings, workers=2)).epoch(0))
    assert all_same(found, list(evaluation(settings).epoch(0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_position_can_be_returned_to_exactly(root: Path, workers: int) -> None:
    settings = config(root, workers=workers, train_sizes=[56, 64, 72])
    loader = training(settings)
    whole = list(loader.epoch(3))
    left = loader.epoch(3)
    next(left)
    left.close()
    for start in range(4):
        assert all_same(list(training(settings).epoch(3, start)), whole[start:])
        assert all_same(list(loader.epoch(3, start)), whole[start:])
    assert not all_same(list(loader.epoch(4)), whole)
    assert not all_same(list(training(settings, seed=1).epoch(3)), whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_torchs_random_numbers_are_left_to_the_network(root: Path, workers: int) -> None:
    """A run that is continued would otherwise draw others than one that was not interrupted."""
    before = torch.get_rng_state()
    loader = training(config(root, workers=workers))
    for start in (0, 2):
        list(loader.epoch(0, start))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("aspect_groups", [True, False])
def test_processes_share_the_global_batches_of_one(root: Path, aspect_groups: bool) -> None:
    settings = config(root, aspect_groups=aspect_groups, train_sizes=[56, 64])
    single = list(training(settings, batch_size=6).epoch(2))
    for world_size in (2, 3):
        shares = [
            list(training(settings, 6 // world_size, rank=r, world_size=world_size).epoch(2))
            for r in range(world_size)
        ]
        for batch, *parts in zip(single, *shares, strict=True):
            assert list(chain(*(part.image_ids for part in parts))) == batch.image_ids
            assert list(chain(*(part.sizes for part in parts))) == batch.sizes
            targets = list(chain(*(part.targets for part in parts)))
            for ours, theirs in zip(targets, batch.targets, strict=True):
                assert all(
                    torch.equal(getattr(ours, name), getattr(theirs, name))
                    for name in ("boxes", "labels")
                )
                assert torch.equal(ours.masks.pixels, theirs.masks.pixels)
            images = [image for part in parts for image in part.images]
            for ours, theirs, (h, w) in zip(images, batch.images, batch.sizes, strict=True):
                assert torch.equal(ours[:, :h, :w], theirs[:, :h, :w])


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_an_evaluation_sees_every_image_alone_and_once(root: Path, world_size: int) -> None:
    numbers = [501 + 3 * index for index in range(len(VAL_SIZES))]
    for rank in range(world_size):
        loader = evaluation(config(root), rank=rank, world_size=world_size)
        batches = list(loader.epoch(0))
        assert [batch.image_ids for batch in batches] == [[n] for n in numbers[rank::world_size]]
        assert len(loader) == len(batches)
        assert loader.num_images == len(VAL_SIZES)
        assert [b.original_sizes for b in batches] == [[s] for s in VAL_SIZES[rank::world_size]]
        assert all(batch.targets is None and batch.semantic is None for batch in batches)


def test_grey_pictures_have_three_equal_channels(root: Path) -> None:
    settings = config(root, mean=[0, 0, 0], std=[1, 1, 1])
    batch = list(evaluation(settings).epoch(0))[-1]
    assert batch.image_ids == [513]
    assert batch.images.std() > 0.05
    assert torch.equal(batch.images[:, 0], batch.images[:, 1])
    assert torch.equal(batch.images[:, 0], batch.images[:, 2])


def test_images_come_in_the_wanted_type_and_layout(root: Path) -> None:
    loader = evaluation(config(root), dtype=torch.bfloat16, channels_last=False)
    images = next(iter(loader.epoch(0))).images
    assert images.dtype == torch.bfloat16
    assert images.is_contiguous()


# ---------------------------------------------------------------------- semantic maps


def test_things_are_labelled_by_their_class(root: Path) -> None:
    loader = training(config(root, semantic="things", horizontal_flip=False))
    for batch in loader.epoch(0):
        height, width = batch.images.shape[2:]
        assert batch.semantic.shape == (2, height // 8, width // 8)
        assert batch.semantic.dtype == torch.int64
        for semantic, (h, w), target in zip(
            batch.semantic, batch.sizes, batch.targets, strict=True
        ):
            inside = semantic[: -(-h // 8), : -(-w // 8)]
            outside = semantic.clone()
            outside[: -(-h // 8), : -(-w // 8)] = 255
            assert (outside == 255).all(), "padding says nothing"
            assert set(inside.unique().tolist()) == {0, 255, *target.labels.tolist()}
            for label, box in zip(target.labels.tolist(), target.boxes.tolist(), strict=True):
                rows, columns = (inside == label).nonzero().T * 8
                assert rows.min() >= box[1] - 1
                assert columns.max() <= box[2] + 1


@pytest.mark.parametrize("mode", ["L", "P"])
def test_maps_of_a_folder_go_with_their_images(own: Path, mode: str) -> None:
    write_maps(own, mode)
    loader = training(config(own, semantic="stuffthingmaps"))
    sides = set()
    for batch in loader.epoch(0):
        for semantic, (h, w), (height, _) in zip(
            batch.semantic, batch.sizes, batch.original_sizes, strict=True
        ):
            inside = semantic[: -(-h // 8), : -(-w // 8)]
            rows = torch.arange(len(inside)) * 8 * height // h
            assert torch.equal(inside[:, 0] % 100, rows)
            assert abs(int(inside[0, 0]) - int(inside[0, -1])) == 100
            sides.add(bool(inside[0, 0] < 100))
    assert sides == {True, False}, "some are mirrored"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda p: p.write_bytes(b"no picture"), "is truncated, damaged or no picture"),
        (lambda p: Image.new("RGB", (64, 48)).save(p), "has colours of mode RGB"),
        (lambda p: Image.new("L", (64, 49)).save(p), "is 49 × 64 pixels, the image 48 × 64"),
        (
            lambda p: Image.new("L", (64, 48), 183).save(p),
            "has class 183, but detector.semantic_classes=183",
        ),
    ],
)
def test_a_map_that_cannot_be_used_is_named(own: Path, how: Any, message: str) -> None:
    write_maps(own)
    path = own / "stuffthingmaps" / "train2017" / "000000000011.png"
    how(path)
    loader = training(config(own, semantic="stuffthingmaps"), batch_size=7, semantic_classes=183)
    with pytest.raises(UserError) as caught:
        list(loader.epoch(0))
    assert f"semantic map {path} {message}" in str(caught.value)


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("half", ["train", "val"])
def test_a_broken_picture_stops_with_its_path_and_what_to_do(
    own: Path, workers: int, half: str
) -> None:
    path = own / f"{half}2017" / ("000000000014.jpg" if half == "train" else "000000000504.jpg")
    path.write_bytes(path.read_bytes()[:200])
    settings = config(own, workers=workers)
    loader = training(settings, batch_size=7) if half == "train" else evaluation(settings)
    with pytest.raises(UserError) as caught:
        list(loader.epoch(0))
    assert str(caught.value).startswith(f"{path} cannot be used (truncated or damaged).\n")
    assert "data.skip_broken=true" in str(caught.value)
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_another_picture_stands_in_for_a_broken_one(
    own: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = own / "train2017" / "000000000014.jpg"
    path.write_bytes(b"")
    loader = training(config(own, workers=workers, skip_broken=True), batch_size=7)
    with caplog.at_level(logging.WARNING):
        for epoch in range(2):
            (batch,) = loader.epoch(epoch)
            assert sorted(batch.image_ids) == [11, 17, 17, 20, 23, 26, 32]
            first, second = (i for i, n in enumerate(batch.image_ids) if n == 17)
            assert torch.equal(batch.images[first], batch.images[second])
    assert loader.skipped == 2
    assert caplog.text.count(f"skipping {path}: it cannot be used (the file is empty)") == 1
    loader.close()


def test_an_evaluation_skips_nothing(own: Path) -> None:
    path = own / "val2017" / "000000000504.jpg"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be used"):
        list(evaluation(config(own, skip_broken=True)).epoch(0))


def test_where_all_are_broken_there_is_an_end(own: Path) -> None:
    for path in (own / "train2017").glob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"None of the images can be decoded\."):
        list(training(config(own, skip_broken=True)).epoch(0))


def test_a_picture_of_another_size_than_its_annotations_say_is_refused(own: Path) -> None:
    path = own / "train2017" / "000000000014.jpg"
    Image.new("RGB", (64, 48)).save(path)
    with pytest.raises(UserError, match="it is 48 × 64 pixels high and wide, the annotations say"):
        list(training(config(own), batch_size=7).epoch(0))


def test_a_picture_that_is_gone_is_named(own: Path) -> None:
    loader = training(config(own, workers=1), batch_size=7)
    (own / "train2017" / "000000000014.jpg").unlink()
    with pytest.raises(UserError, match=r"An image cannot be read.*000000000014\.jpg"):
        list(loader.epoch(0))
    loader.close()


def test_a_killed_worker_is_reported_with_the_likely_cause(root: Path) -> None:
    """As the kernel kills one that takes too much memory."""
    before = set(multiprocessing.active_children())
    batches = training(config(root, workers=2), batch_size=1).epoch(0)
    next(batches)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"worker .*killed.*out of memory: lower data\.workers"):
        list(batches)


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()]
)
def test_a_worker_that_dies_while_it_hands_over_a_batch_is_no_unreadable_image(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def answers(_: object) -> Iterator[None]:
        raise error
        yield

    monkeypatch.setattr(worker_batches, "_SECONDS_TO_SIGNAL", 0)
    monkeypatch.setattr(worker_batches.WorkerBatches, "_answers", staticmethod(answers))
    with pytest.raises(UserError, match=r"no longer answers.*killed.*lower data\.workers"):
        list(training(config(root)).epoch(0))


def test_a_batch_larger_than_the_data_set_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"batch_size=8 is more than the 7 images .* at most 7"):
        training(config(root), batch_size=8)
    with pytest.raises(UserError, match=r"batch_size=3 on each of 3 processes .* at most 2"):
        training(config(root), batch_size=3, rank=1, world_size=3)


def test_a_closed_loader_yields_nothing(root: Path) -> None:
    loader = evaluation(config(root))
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(iter(loader.epoch(0)))


def test_pinned_answers_are_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pinning thread makes of an answer has all that the answer has."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    answer = next(training(config(root, semantic="things"))._answers.epoch(0, 0))
    pinned = answer.pin_memory()
    for field in fields(answer):
        ours, theirs = getattr(answer, field.name), getattr(pinned, field.name)
        if isinstance(ours, torch.Tensor):
            assert torch.equal(ours, theirs)
        else:
            assert ours is theirs
