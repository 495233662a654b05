"""Which images are in which batch, and how they differ from epoch to epoch."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from attnorm.data.sampling import epoch_order
from attnorm.detection.plan import Augmentation, DetectionPlan, EvaluationPlan, aspect_groups

GROUPS = np.random.default_rng(0).integers(0, 2, 101)


@pytest.mark.parametrize("size", [1, 2, 6, 16, 64, 101, 102])
def test_an_epoch_has_all_batches_that_can_be_filled_and_no_image_twice(size: int) -> None:
    plan = DetectionPlan(GROUPS, size)
    for epoch in range(5):
        batches = plan.batches(epoch)
        assert len(batches) == len(plan) == 101 // size
        images = np.concatenate(batches) if batches else np.zeros(0, np.int64)
        assert len(np.unique(images)) == len(images) == len(plan) * size
        mixed = [len(set(GROUPS[batch])) > 1 for batch in batches]
        assert sum(mixed) <= 1
        assert not any(mixed[:-1]), "the last at most"


def test_leftovers_of_the_groups_make_a_batch_if_they_are_enough() -> None:
    # 5 and 3 left over make another batch of 8; 4 and 3 do not.
    for counts, batches in (((13, 11), 3), ((12, 11), 2)):
        groups = np.repeat([0, 1], counts)
        plan = DetectionPlan(groups, 8)
        assert len(plan.batches(0)) == len(plan) == batches


@pytest.mark.parametrize("groups", [GROUPS, np.zeros(101, np.int64), np.ones(101, np.int64)])
def test_global_batches_are_the_same_on_any_number_of_processes(groups: np.ndarray) -> None:
    expected = DetectionPlan(groups, 6, seed=3).batches(4)
    for world_size in (1, 2, 3, 6):
        shares = [
            DetectionPlan(groups, 6 // world_size, 3, rank, world_size).batches(4)
            for rank in range(world_size)
        ]
        assert {len(share) for share in shares} == {len(expected)}
        for parts, batch in zip(zip(*shares, strict=True), expected, strict=True):
            assert np.concatenate(parts).tolist() == batch.tolist()


def test_any_position_can_be_returned_to() -> None:
    plan = DetectionPlan(GROUPS, 4, 1, 1, 3)
    whole = plan.batches(2)
    for start in (0, 1, 5, len(plan)):
        rest = DetectionPlan(GROUPS, 4, 1, 1, 3).batches(2, start)
        assert [batch.tolist() for batch in rest] == [batch.tolist() for batch in whole[start:]]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [
        np.concatenate(DetectionPlan(GROUPS, 4, seed).batches(epoch)).tolist()
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    first_groups = {GROUPS[DetectionPlan(GROUPS, 4, 0).batches(epoch)[0][0]] for epoch in range(20)}
    assert first_groups == {0, 1}, "neither group always comes first"


def test_images_left_out_change_from_epoch_to_epoch() -> None:
    plan = DetectionPlan(np.repeat([0, 1], (42, 37)), 8)  # 2 and 5 are left
    left = [set(range(79)) - set(np.concatenate(plan.batches(e)).tolist()) for e in range(200)]
    assert {len(images) for images in left} == {7}
    assert set.union(*left) == set(range(79))


def test_without_groups_the_order_is_that_of_the_epoch() -> None:
    plan = DetectionPlan(np.zeros(101, np.int64), 4, seed=5)
    assert np.concatenate(plan.batches(3)).tolist() == epoch_order(5, 3, 101)[:100].tolist()


def test_groups_are_wide_images_and_others() -> None:
    sizes = np.array([(480, 640), (640, 480), (500, 500), (499, 500)])
    assert aspect_groups(sizes).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("world_size", [1, 2, 3, 40])
def test_an_evaluation_is_of_every_image_once(world_size: int) -> None:
    plans = [EvaluationPlan(31, rank, world_size) for rank in range(world_size)]
    images = [plan.batches(0) for plan in plans]
    assert [len(own) for own in images] == [len(plan) for plan in plans]
    assert sorted(np.concatenate(list(chain(*images))).tolist()) == list(range(31))
    assert all(batch.shape == (1,) for own in images for batch in own)
    assert [b.tolist() for b in plans[0].batches(0, 1)] == [b.tolist() for b in images[0][1:]]


def test_flip_and_size_are_functions_of_seed_epoch_and_image_alone() -> None:
    augmentation = Augmentation(True, (640, 672, 704, 736, 768, 800), seed=2)
    images = np.arange(6_000)
    flips, sides = augmentation.draw(7, images)
    again = Augmentation(True, (640, 672, 704, 736, 768, 800), seed=2)
    for number in (5, 17, 4_999):
        flip, side = again.draw(7, np.array([number]))
        assert (flip[0], side[0]) == (flips[number], sides[number])
    assert abs(flips.mean() - 0.5) < 0.03
    values, counts = np.unique(sides, return_counts=True)
    assert values.tolist() == [640, 672, 704, 736, 768, 800]
    assert counts.min() > 900
    for flip in (flips, ~flips):  # neither tells the other
        assert abs(sides[flip].mean() - 720) < 5
    for other in (augmentation.draw(8, images), Augmentation(True, (640, 800), 3).draw(7, images)):
        assert not np.array_equal(other[0], flips)


def test_without_flips_there_are_none() -> None:
    flips, sides = Augmentation(False, (800,), 0).draw(0, np.arange(100))
    assert not flips.any()
    assert set(sides) == {800}
