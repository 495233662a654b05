"""Distortions are timm's and torchvision's; what is drawn comes in as numbers."""

from __future__ import annotations

from collections import Counter
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import TrivialAugmentWide as Theirs
from torchvision.transforms.autoaugment import _apply_op  # type: ignore[attr-defined]

from attnorm.data.augment import (
    _TRIVIAL,
    Augmentation,
    AutoAugment,
    Operation,
    RandAugment,
    TrivialAugmentWide,
    _values,
    distort_trivially,
    read_policy,
)
from attnorm.errors import UserError
from tests.data.conftest import photo

FILL = (124, 116, 104)
RSB = "rand-m7-n2-mstd0.5-inc1"


@pytest.mark.parametrize(
    "name", sorted({*timm._RAND_TRANSFORMS, *timm._RAND_INCREASING_TRANSFORMS})
)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_magnitudes_mean_what_they_mean_in_timm(name: str, sign: float) -> None:
    level = timm.LEVEL_TO_ARG[name]
    # timm negates where its random number is above 1/2.
    with mock.patch.object(timm.random, "random", return_value=0.9 if sign < 0 else 0.1):
        for magnitude in (0.0, 0.4, 3.3, 7.0, 9.99, 10.0):
            expected = level(magnitude, {}) if level else ()
            assert _values(name, magnitude, sign) == pytest.approx(expected), magnitude


def test_the_policy_of_rsb_is_read_as_timm_reads_it() -> None:
    policy = read_policy(RSB)
    assert isinstance(policy, RandAugment)
    assert policy.layers == 2
    assert [op.name for op in policy.operations] == timm._RAND_INCREASING_TRANSFORMS
    assert {(op.probability, op.magnitude, op.deviation) for op in policy.operations} == {
        (0.5, 7, 0.5)
    }
    auto = read_policy("original")
    assert isinstance(auto, AutoAugment)
    assert len(auto.sequences) == 25
    first = auto.sequences[0]
    assert [(op.name, op.probability, op.magnitude) for op in first] == [
        ("PosterizeOriginal", 0.4, 8),
        ("Rotate", 0.6, 9),
    ]
    assert isinstance(read_policy("trivial_augment_wide"), TrivialAugmentWide)


@pytest.mark.parametrize("text", ["rand-q7", "fancy", "rand-m9-mstd101", "rand-m5-tweights", "3a"])
def test_an_unknown_policy_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"augment\.policy"):
        read_policy(text)


def test_an_operation_is_done_as_often_and_as_strongly_as_it_says() -> None:
    operation = Operation("Rotate", probability=0.5, magnitude=7, deviation=0.5)
    image = photo(0, (40, 30))
    done, degrees = 0, []
    with mock.patch.dict(
        timm.NAME_TO_OP, {"Rotate": lambda im, deg, **_: (degrees.append(deg), im)[1]}
    ):
        for numbers in np.random.default_rng(0).random((1000, 4)):
            operation(image, numbers, FILL)
    done = len(degrees)
    assert done == pytest.approx(500, abs=60)
    magnitudes = np.abs(degrees) / 3
    assert magnitudes.mean() == pytest.approx(7, abs=0.1)
    assert magnitudes.std() == pytest.approx(0.5, abs=0.06)
    assert np.mean(np.array(degrees) < 0) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("name", _TRIVIAL)
def test_a_trivial_augmentation_is_torchvisions(name: str) -> None:
    space = Theirs()._augmentation_space(31)
    magnitudes, signed = space[name]
    image = photo(5, (60, 44))
    for level in (0, 7, 18, 30):
        for sign in (-1.0, 1.0) if signed else (1.0,):
            magnitude = float(magnitudes[level]) if magnitudes.ndim else 0.0
            ours = np.asarray(distort_trivially(image, name, level, sign), dtype=int)
            # torchvision moves pixels the other way: both ways are as likely.
            moved = name.startswith("Translate")
            theirs = _apply_op(
                image,
                name,
                -sign * magnitude if moved else sign * magnitude,
                interpolation=InterpolationMode.NEAREST,
                fill=None,
            )
            # torchvision's strengths are float32, which may round a pixel the other way.
            assert np.abs(ours - np.asarray(theirs, dtype=int)).max() <= 1, (level, sign)


def test_the_same_numbers_give_the_same_image_and_others_another() -> None:
    augment = Augmentation(read_policy(RSB), erasing=0.0, fill=FILL)
    image = torch.from_numpy(np.array(photo(1, (48, 48))))
    draws = np.random.default_rng(0).random((40, augment.draws))
    first = [augment(image, numbers) for numbers in draws]
    again = [augment(image, numbers) for numbers in draws]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(a.shape == image.shape and a.dtype == torch.uint8 for a in first)
    different = sum(not torch.equal(a, image) for a in first)
    assert different >= 20  # at least one of two layers is done 3 times in 4
    assert len({a.numpy().tobytes() for a in first}) >= 20


def test_every_operation_of_a_policy_gets_its_turn() -> None:
    policy = read_policy(RSB)
    seen: Counter[str] = Counter()
    image = photo(2, (16, 16))
    with mock.patch(
        "attnorm.data.augment.distort", lambda im, name, *_: (seen.update([name]), im)[1]
    ):
        for numbers in np.random.default_rng(0).random((2000, policy.draws)):
            policy(image, numbers, FILL)
    assert set(seen) == set(timm._RAND_INCREASING_TRANSFORMS)
    # 2000 images × 2 layers × 1/2 over 15 operations.
    assert min(seen.values()) > 90
    assert max(seen.values()) < 180


def test_a_rectangle_is_erased_as_often_and_as_large_as_torchvision_does() -> None:
    augment = Augmentation(None, erasing=0.5, fill=FILL)
    image = torch.full((64, 64, 3), 7, dtype=torch.uint8)
    shares = []
    for numbers in np.random.default_rng(1).random((600, augment.draws)):
        erased = (augment(image, numbers) == torch.tensor(FILL, dtype=torch.uint8)).all(2)
        if erased.any():
            rows, columns = erased.any(1), erased.any(0)
            assert erased.sum() == rows.sum() * columns.sum(), "one rectangle"
            shares.append(float(erased.float().mean()))
    assert len(shares) == pytest.approx(300, abs=45)
    assert min(shares) > 0.015
    assert max(shares) < 0.345
    assert np.mean(shares) == pytest.approx(0.17, abs=0.02)
    assert torch.equal(image, torch.full_like(image, 7))


def test_pillow_sees_rows_of_pixels() -> None:
    """A mirrored image is a view with other strides."""
    image = torch.from_numpy(np.array(photo(3, (20, 12)))).flip(1)
    whole = Augmentation(read_policy("trivial_augment_wide"), 0.0, FILL)(image, [0.0, 0.5, 0.5])
    assert torch.equal(whole, image)
    assert Image.fromarray(image.numpy()).size == (20, 12)
