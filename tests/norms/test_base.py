"""One answer to what a normalizer is, for torch's, this project's and other libraries' layers."""

from __future__ import annotations

import pytest
from timm.layers import BatchNormAct2d
from torch import nn

from attnorm.norms import AttentiveNorm2d, GroupNorm2d, SwitchNorm2d, is_normalizer


@pytest.mark.parametrize(
    "module",
    [
        AttentiveNorm2d(4),
        SwitchNorm2d(4),
        GroupNorm2d(4),
        nn.BatchNorm2d(4),
        nn.SyncBatchNorm(4),
        nn.InstanceNorm1d(4),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(4),
        BatchNormAct2d(4),
    ],
    ids=lambda module: type(module).__name__,
)
def test_normalizers_are_recognised(module: nn.Module) -> None:
    assert is_normalizer(module)


@pytest.mark.parametrize(
    "module",
    [nn.Conv2d(4, 4, 1), nn.Sequential(nn.BatchNorm2d(4)), AttentiveNorm2d(4).attention],
    ids=["convolution", "container", "attention head"],
)
def test_what_is_made_of_weights_or_only_holds_a_normalizer_is_none(module: nn.Module) -> None:
    assert not is_normalizer(module)
