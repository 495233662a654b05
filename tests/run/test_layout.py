"""A run says so when torch's group norm spoils the memory format on its device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attnorm.distributed import Placement
from attnorm.run import train

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("layer", "channels_last", "kept", "warned"),
    [
        (nn.GroupNorm(2, 4), True, False, True),
        (nn.GroupNorm(2, 4), True, True, False),
        (nn.GroupNorm(2, 4), False, False, False),
        (nn.BatchNorm2d(4), True, False, False),
    ],
)
def test_only_group_norm_in_channels_last_is_warned_of(
    layer: nn.Module,
    channels_last: bool,
    kept: bool,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "keeps_channels_last", lambda device: kept)
    placement = Placement(CPU, 4, channels_last=channels_last)
    assert train.loses_channels_last(nn.Sequential(layer), placement) is warned
