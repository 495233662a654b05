"""Mixup and cutmix: what they are named after, and the same for the same step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from attnorm.classification import Classification
from attnorm.classification.mixing import Mix, draw_mix, mix_images, mix_targets, neighbours
from attnorm.config import AugmentConfig, TrainConfig

BOTH = AugmentConfig(mixup=0.2, cutmix=1.0)


def _images(count: int = 8, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def test_shares_follow_the_beta_distribution_and_kinds_take_turns() -> None:
    drawn = [draw_mix(BOTH, 3, step, 224, 224) for step in range(2000)]
    mixed = [mix.share for mix in drawn if mix is not None and mix.box is None]
    cut = [mix for mix in drawn if mix is not None and mix.box is not None]
    assert len(mixed) + len(cut) == 2000
    assert len(cut) == pytest.approx(1000, abs=100)
    assert stats.kstest(mixed, stats.beta(0.2, 0.2).cdf).pvalue > 0.01
    # A rectangle around a centre anywhere is cut off at the border: more of the image is left.
    shares = np.array([mix.share for mix in cut])
    assert 0.55 < shares.mean() < 0.75
    for mix in cut:
        assert mix.box is not None
        top, bottom, left, right = mix.box
        assert 0 <= top <= bottom <= 224
        assert 0 <= left <= right <= 224
        assert mix.share == 1 - (bottom - top) * (right - left) / 224**2


def test_a_step_mixes_as_often_as_it_is_asked_to_and_always_alike() -> None:
    config = AugmentConfig(mixup=1.0, mix_probability=0.25)
    drawn = [draw_mix(config, 0, step, 8, 8) for step in range(2000)]
    assert sum(mix is not None for mix in drawn) == pytest.approx(500, abs=80)
    assert drawn == [draw_mix(config, 0, step, 8, 8) for step in range(2000)]
    assert drawn != [draw_mix(config, 1, step, 8, 8) for step in range(2000)]
    assert draw_mix(AugmentConfig(), 0, 0, 8, 8) is None


@pytest.mark.parametrize("mix", [Mix(0.3), Mix(1 - 12 / 256, (2, 5, 3, 7))])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_images_are_mixed_with_their_neighbours_in_any_part_of_a_batch(
    mix: Mix, layout: torch.memory_format
) -> None:
    images = _images().contiguous(memory_format=layout)
    before = images.clone()
    mixed = mix_images(images, mix)
    assert torch.equal(images, before)
    assert mixed.is_contiguous(memory_format=layout)
    # Two processes with half of the batch each mix the same.
    halves = torch.cat([mix_images(half, mix) for half in images.chunk(2)])
    assert torch.equal(mixed, halves)
    expected = before.clone()
    for i in range(len(images)):
        other = before[i ^ 1]
        if mix.box is None:
            expected[i] = mix.share * before[i] + (1 - mix.share) * other
        else:
            expected[i, :, 2:5, 3:7] = other[:, 2:5, 3:7]
    torch.testing.assert_close(mixed, expected)


def test_targets_are_timms_for_a_pair() -> None:
    labels = torch.tensor([2, 0])  # timm mixes a batch with itself reversed: the same for two
    targets, greater = mix_targets(labels, 5, 0.1, Mix(0.3))
    expected = mixup_target(labels, 5, lam=0.3, smoothing=0.1)
    torch.testing.assert_close(targets, expected)
    assert greater.tolist() == [0, 2]
    assert mix_targets(labels, 5, 0.1, Mix(0.7))[1].tolist() == [2, 0]
    plain, same = mix_targets(labels, 5, 0.1, None)
    torch.testing.assert_close(plain.sum(1), torch.ones(2))
    assert same is labels
    assert neighbours(torch.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]


class _Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(5, 3))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) @ self.weight.T


def test_the_loss_of_mixed_images_is_the_mean_of_both_labels_losses() -> None:
    model, images, labels = _Linear(), _images(), torch.arange(8) % 5
    augment = AugmentConfig(mixup=1.0)
    task = Classification([*"abcde"], TrainConfig(label_smoothing=0.1), augment, seed=4)
    output = task.loss(model, (images, labels), step=7)
    mix = draw_mix(augment, 4, 7, 16, 16)
    assert mix is not None
    logits = model(mix_images(images, mix))
    parts = (
        F.cross_entropy(logits, to, label_smoothing=0.1) for to in (labels, neighbours(labels))
    )
    own, other = parts
    torch.testing.assert_close(output.loss, mix.share * own + (1 - mix.share) * other)


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_binary_cross_entropy_is_timms(threshold: float | None) -> None:
    model, images, labels = _Linear(), _images(), torch.arange(8) % 5
    train = TrainConfig(
        loss="binary_cross_entropy", label_smoothing=0.1, target_threshold=threshold
    )
    output = Classification([*"abcde"], train).loss(model, (images, labels), step=0)
    theirs = BinaryCrossEntropy(smoothing=0.1, target_threshold=threshold)
    torch.testing.assert_close(output.loss, theirs(model(images), labels))
    assert output.sums["correct"] == (model(images).argmax(1) == labels).sum()


def test_without_mixing_the_loss_is_torchs_to_the_bit() -> None:
    model, images, labels = _Linear(), _images(), torch.arange(8) % 5
    output = Classification([*"abcde"], TrainConfig(0.1)).loss(model, (images, labels), step=0)
    assert torch.equal(output.loss, F.cross_entropy(model(images), labels, label_smoothing=0.1))
