"""Both real loaders: the same pixels, exact counts, exact return to a position."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from attnorm.config import AugmentConfig, LoaderConfig
from attnorm.data.build import choose
from attnorm.data.dali import DaliLoader
from attnorm.data.decode import Transform
from attnorm.data.folder import scan
from attnorm.data.loader import Loader
from attnorm.data.normalize import PixelNormalization
from attnorm.data.sampling import Plan, RandomCrop
from attnorm.errors import UserError
from tests.data.conftest import CPU, Make

REAL = ["torch", "dali"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def collect(loader: Loader, epoch: int = 0, start_batch: int = 0) -> tuple[Tensor, Tensor]:
    batches = list(loader.epoch(epoch, start_batch))
    return torch.cat([images for images, _ in batches]), torch.cat(
        [labels for _, labels in batches]
    )


def pixel_difference(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference of each image, in steps of 1/255 before normalization."""
    deviation = torch.tensor(STD).view(1, 3, 1, 1)
    return ((first - second) * deviation * 255).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("training", [True, False])
def test_dali_and_torch_yield_the_same_pixels_and_labels(make: Make, training: bool) -> None:
    (images, labels), (others, other_labels) = (
        collect(make(name, training=training), epoch=3 if training else 0) for name in REAL
    )
    assert torch.equal(labels, other_labels)
    assert len(images) == (48 if training else 31)
    assert pixel_difference(images, others).max() < 0.01


@pytest.mark.parametrize("training", [True, False])
def test_the_graph_that_runs_on_a_gpu_agrees_with_torch(
    make: Make, photos: Path, training: bool
) -> None:
    # The same graph on the CPU: DALI's own resize in place of torch's.
    images = scan(photos / ("train" if training else "val"))
    like_gpu = DaliLoader(
        images,
        Plan(len(images), 8, training),
        Transform(48, 56, RandomCrop((0.08, 1), (3 / 4, 4 / 3), True, 0) if training else None),
        PixelNormalization(MEAN, STD, device=CPU, dtype=torch.float32, channels_last=True),
        workers=2,
        prefetch=2,
        skip_broken=False,
        resize_in_torch=False,
    )
    difference = pixel_difference(
        collect(make("torch", training=training))[0], collect(like_gpu)[0]
    )
    assert difference.mean() < 0.5
    assert difference.max() < 1.5


@pytest.mark.parametrize("name", REAL)
def test_an_evaluation_image_is_what_pillow_makes_of_it(
    make: Make, photos: Path, name: str
) -> None:
    images, _ = collect(make(name, training=False))
    folder = scan(photos / "val")
    checked = 0
    for index, image in enumerate(images):
        with Image.open(folder.path(index)) as opened:
            if opened.mode == "CMYK":  # Pillow converts the colours in its own way
                continue
            picture = opened.convert("RGB")
        width, height = picture.size
        short = min(width, height)
        size = (56 * width // short, 56 * height // short)
        left, top = (size[0] - 48) // 2, (size[1] - 48) // 2
        picture = picture.resize(size, Image.Resampling.BILINEAR)
        picture = picture.crop((left, top, left + 48, top + 48))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
        wanted = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        assert pixel_difference(image[None], wanted[None]).item() < 1.0, folder.path(index)
        checked += 1
    assert checked == len(images) - 1


@pytest.mark.parametrize("name", REAL)
def test_a_position_can_be_returned_to_exactly(make: Make, name: str) -> None:
    loader = make(name)
    whole, labels = collect(loader, epoch=2)
    batches = loader.epoch(2)
    for _ in range(2):
        next(batches)
    batches.close()

    again, again_labels = collect(make(name), 2, 2)
    assert torch.equal(again_labels, labels[16:])
    assert torch.equal(again, whole[16:])
    # The loader itself goes on as well, after an epoch that was left half-way.
    assert torch.equal(collect(loader, 2, 2)[0], whole[16:])


@pytest.mark.parametrize("name", REAL)
def test_starting_an_epoch_draws_nothing_that_a_model_could_draw(make: Make, name: str) -> None:
    loader = make(name)
    before = torch.get_rng_state()
    next(loader.epoch(0))
    next(loader.epoch(0, 1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", REAL)
def test_epochs_and_seeds_differ_and_repeat(make: Make, name: str) -> None:
    loader, other_seed = make(name), make(name, seed=1)
    first, second = collect(loader, 0)[0], collect(loader, 1)[0]
    assert not torch.equal(first, second)
    assert not torch.equal(first, collect(other_seed, 0)[0])
    assert torch.equal(first, collect(loader, 0)[0])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_number_of_workers_changes_nothing(make: Make, workers: int) -> None:
    expected = collect(make("torch", workers=2))[0]
    assert torch.equal(collect(make("torch", workers=workers))[0], expected)
    assert torch.equal(collect(make("dali", workers=workers))[0], collect(make("dali"))[0])


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("world_size", [1, 2, 3, 40])
def test_an_evaluation_sees_every_image_once_on_any_number_of_processes(
    make: Make, name: str, world_size: int
) -> None:
    reference, _ = collect(make(name, training=False, workers=0))
    # Forty processes share 31 images: some have none. Every sixth is enough to see that.
    ranks = range(world_size) if world_size < 40 else (0, 6, 12, 18, 24, 30, 36, 39)
    for rank in ranks:
        loader = make(name, training=False, workers=0, rank=rank, world_size=world_size)
        assert loader.num_images == 31
        share = reference[rank::world_size]
        batches = list(loader.epoch(0))
        assert len(batches) == len(loader) == -(-len(share) // 8)
        if batches:
            assert torch.equal(torch.cat([images for images, _ in batches]), share)
        else:
            assert len(share) == 0


def test_two_processes_share_the_global_batches_of_one(make: Make) -> None:
    single = list(make("torch").epoch(1))
    halves = [list(make("torch", batch_size=4, rank=r, world_size=2).epoch(1)) for r in (0, 1)]
    assert len(single) == 6
    for (images, labels), *parts in zip(single, *halves, strict=True):
        assert torch.equal(images, torch.cat([part for part, _ in parts]))
        assert torch.equal(labels, torch.cat([part for _, part in parts]))


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_images_come_in_the_asked_for_type_and_layout(
    make: Make, name: str, channels_last: bool, dtype: torch.dtype
) -> None:
    loader = make(name, workers=0, channels_last=channels_last, dtype=dtype)
    images, labels = next(iter(loader.epoch(0)))
    assert images.dtype == dtype
    assert labels.dtype == torch.int64
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=layout)
    exact, _ = next(iter(make(name, workers=0).epoch(0)))
    assert pixel_difference(images.float(), exact).max() < 0.6


@pytest.mark.parametrize("name", REAL)
def test_labels_follow_the_given_class_names(make: Make, name: str) -> None:
    names = ["zebra", "cat", "bee", "ant"]
    _, labels = collect(make(name, training=False, class_names=names))
    _, by_default = collect(make(name, training=False))
    assert Counter(by_default.tolist()) == {0: 9, 1: 13, 2: 9}
    assert Counter(labels.tolist()) == {3: 9, 2: 13, 1: 9}


@pytest.mark.parametrize("name", REAL)
def test_a_batch_stays_as_it_is_while_later_ones_arrive(make: Make, name: str) -> None:
    batches = make(name).epoch(0)
    first, _ = next(batches)
    copy = first.clone()
    for _ in batches:
        pass
    assert torch.equal(first, copy)


@pytest.mark.parametrize("name", REAL)
def test_a_closed_loader_yields_nothing(make: Make, name: str) -> None:
    loader = make(name)
    next(loader.epoch(0))
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(loader.epoch(0))


EVERYTHING = {
    "augment": AugmentConfig(policy="rand-m7-n2-mstd0.5-inc1", erasing=0.5, repeats=2),
    "interpolation": "bicubic",
    "train_size": 32,
    "final_train_size": 48,
    "train_size_ramp": [0.5, 0.75],
    "epochs": 4,
}


def test_both_loaders_augment_alike_and_repeat_themselves(make: Make) -> None:
    loaders = [make(name, **EVERYTHING) for name in REAL]
    plain = make("torch", **(EVERYTHING | {"augment": AugmentConfig(repeats=2)}))
    for epoch, side in ((0, 32), (3, 48), (1, 32)):
        (images, labels), (others, other_labels) = (collect(loader, epoch) for loader in loaders)
        assert images.shape == (48, 3, side, side)
        assert torch.equal(labels, other_labels)
        assert pixel_difference(images, others).max() < 0.01
        middle, _ = collect(loaders[1], epoch, start_batch=4)
        assert torch.equal(others[32:], middle)
        changed = pixel_difference(images, collect(plain, epoch)[0]) > 0.5
        assert changed.float().mean() > 0.6
    # Two copies of an image have crops of their own.
    first, second = images[:8].chunk(2)
    assert (pixel_difference(first, second) > 1).all()


@pytest.mark.parametrize("name", REAL)
def test_an_evaluation_image_may_be_resized_bicubically(
    make: Make, photos: Path, name: str
) -> None:
    images, _ = collect(make(name, training=False, interpolation="bicubic"))
    folder = scan(photos / "val")
    with Image.open(folder.path(0)) as opened:
        picture = opened.convert("RGB")
    width, height = picture.size
    short = min(width, height)
    size = (56 * width // short, 56 * height // short)
    left, top = (size[0] - 48) // 2, (size[1] - 48) // 2
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    picture = picture.crop((left, top, left + 48, top + 48))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    wanted = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert pixel_difference(images[:1], wanted[None]).item() < 1.0


def test_on_a_gpu_distortions_are_torchs_business() -> None:
    gpu = torch.device("cuda", 0)
    assert choose(LoaderConfig(name="auto"), gpu, distorts=True)[0] == "torch"
    with pytest.raises(UserError, match=r"loader=torch"):
        choose(LoaderConfig(name="dali"), gpu, distorts=True)
    assert choose(LoaderConfig(name="auto"), gpu)[0] == "dali"
