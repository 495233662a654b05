"""Order, crops and flips as functions of (seed, epoch, image)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from torch import empty
from torchvision.transforms import RandomResizedCrop

from attnorm.data.decode import TrainSize
from attnorm.data.sampling import Plan, RandomCrop, centre, epoch_order, resized_shape, uniform

CROP = RandomCrop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True, seed=0)


def test_every_epoch_is_another_permutation_of_the_whole_set() -> None:
    orders = [epoch_order(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1, 2)]
    for order in orders:
        assert sorted(order) == list(range(1000))
    for number, order in enumerate(orders):
        assert all((order != other).mean() > 0.99 for other in orders[:number])
    assert (epoch_order(1, 2, 1000) == orders[-1]).all()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_processes_of_a_training_epoch_share_no_image(world_size: int) -> None:
    plans = [Plan(1003, 16, True, seed=5, rank=r, world_size=world_size) for r in range(world_size)]
    taken = np.concatenate([np.concatenate(plan.batches(7, 0)) for plan in plans])
    assert len(set(taken)) == len(taken) == 1003 // (16 * world_size) * 16 * world_size
    assert {len(plan) for plan in plans} == {1003 // (16 * world_size)}


@pytest.mark.parametrize(("images", "world_size"), [(360, 1), (361, 2), (10, 4), (3, 4)])
def test_the_processes_of_an_evaluation_cover_every_image_once(
    images: int, world_size: int
) -> None:
    plans = [Plan(images, 7, False, rank=rank, world_size=world_size) for rank in range(world_size)]
    taken = [index for plan in plans for batch in plan.batches(0, 0) for index in batch]
    assert sorted(taken) == list(range(images))
    assert all(len(plan.batches(0, 0)) == len(plan) for plan in plans)


def test_batches_from_a_position_are_the_rest_of_the_epoch() -> None:
    plan = Plan(100, 8, True, seed=3, rank=1, world_size=2)
    whole, rest = plan.batches(4, 0), plan.batches(4, 2)
    assert np.array_equal(np.stack(whole[2:]), np.stack(rest))


def test_drawn_numbers_are_uniform_and_unrelated() -> None:
    numbers = np.concatenate([uniform(1, epoch, np.arange(4000), 8) for epoch in range(5)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    share, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert np.abs(share / numbers.size - 0.05).max() < 0.002
    columns = np.corrcoef(numbers.T) - np.eye(8)
    assert np.abs(columns).max() < 0.03
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.03
    epochs = numbers[:, 0].reshape(5, 4000)
    assert np.abs(np.corrcoef(epochs) - np.eye(5)).max() < 0.06


def test_one_image_draws_the_same_whatever_batch_it_is_in() -> None:
    together, flips = CROP.draw(2, np.arange(50))
    alone, flip = CROP.draw(2, np.array([31]))
    assert np.array_equal(together[31], alone[0])
    assert flips[31] == flip[0]
    assert not np.array_equal(together[31], CROP.draw(3, np.array([31]))[0][0])


def test_half_of_the_images_are_mirrored_unless_flips_are_off() -> None:
    _, mirror = CROP.draw(0, np.arange(4000))
    assert 0.46 < mirror.mean() < 0.54
    still = RandomCrop(CROP.scale, CROP.ratio, flip=False, seed=0)
    assert not still.draw(0, np.arange(4000))[1].any()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (60, 400), (1, 1)])
def test_crops_are_distributed_as_torchvisions(height: int, width: int) -> None:
    candidates, _ = CROP.draw(0, np.arange(3000))
    ours = CROP.boxes(candidates, np.array([[height, width]] * len(candidates)))
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, :2] + ours[:, 2:] <= [height, width]).all()
    image = empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    )
    # Means of 3,000 draws: five standard errors apart is not chance.
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / 3000)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) <= 5 * error + 1e-9).all()
    assert np.allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.15)


def test_an_image_that_no_candidate_fits_is_cropped_at_its_centre() -> None:
    candidates, _ = CROP.draw(0, np.array([0]))
    boxes = CROP.boxes(candidates[[0, 0]], np.array([[10, 1000], [1000, 9]]))
    assert boxes.tolist() == [[0, (1000 - 13) // 2, 10, 13], [(1000 - 12) // 2, 0, 12, 9]]


def test_the_evaluation_size_keeps_the_short_side_exact() -> None:
    assert resized_shape(375, 500, 256) == (256, 341)
    assert resized_shape(500, 375, 256) == (341, 256)
    assert resized_shape(64, 64, 256) == (256, 256)
    assert centre((256, 341), 224) == (16, 58)
    assert math.isclose(256 / 375, 341 / 500, rel_tol=1e-2)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_repeated_images_are_different_draws_and_the_same_batches_on_any_number(
    world_size: int,
) -> None:
    batch = 12 // world_size
    plans = [
        Plan(100, batch, True, seed=5, rank=r, world_size=world_size, repeats=3)
        for r in range(world_size)
    ]
    assert {len(plan) for plan in plans} == {8}
    shares = [plan.batches(7, 0) for plan in plans]
    whole = Plan(100, 12, True, seed=5, repeats=3).batches(7, 0)
    seen: set[int] = set()
    for step, numbers in enumerate(whole):
        assert (np.concatenate([share[step] for share in shares]) == numbers).all()
        images, copies = np.unique(numbers % 100, return_counts=True)
        assert (copies == 3).all()
        assert len(set(numbers)) == 12
        assert set(numbers // 100) == {0, 1, 2}
        pairs = (numbers % 100).reshape(-1, 2)
        assert (pairs[:, 0] != pairs[:, 1]).all(), "an image is not mixed with itself"
        seen |= set(images)
    assert len(seen) == 32, "no image in two batches"
    if world_size == 3:  # the copies of an image see three processes
        assert all(len(set(share[0] % 100)) == 4 for share in shares)


def test_numbers_further_in_a_stream_are_those_that_follow() -> None:
    images = np.array([3, 1, 900])
    whole = uniform(1, 2, images, 20)
    assert (uniform(1, 2, images, 12, first=8) == whole[:, 8:]).all()


def test_training_images_grow_as_ffcv_lets_them() -> None:
    size = TrainSize(160, 192, 11, 13)
    assert [size.at(epoch) for epoch in range(16)] == [160] * 12 + [192] * 4
    wide = TrainSize(96, 224, 2, 8)
    sides = [wide.at(epoch) for epoch in range(10)]
    interpolated = [int(np.round(np.interp(e, [2, 8], [96, 224]) / 32)) * 32 for e in range(3, 8)]
    assert sides == [96, 96, 96, *interpolated, 224, 224]
    assert [TrainSize(24, 28, 1, 2).at(epoch) for epoch in range(4)] == [24, 24, 28, 28]
    assert [TrainSize(176, 176).at(epoch) for epoch in (0, 99)] == [176, 176]
