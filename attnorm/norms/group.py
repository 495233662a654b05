"""Group Normalization for any number of channels."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def largest_group_count(num_features: int, num_groups: int) -> int:
    """The largest divisor of ``num_features`` that is at most ``num_groups``."""
    largest = min(num_features, num_groups)
    return next(count for count in range(largest, 0, -1) if num_features % count == 0)


class GroupNorm2d(nn.GroupNorm):
    """``nn.GroupNorm`` (Wu and He, 2018) with 32 groups, or fewer where 32 do not divide C.

    Input and output are (N, C, H, W). MobileNet-v2's 144 channels, for one, become 24 groups.

    Args:
        num_features: C.
        num_groups: The number wanted; :func:`largest_group_count` gives the number used.
        eps: Added to the variance.
    """

    def __init__(self, num_features: int, num_groups: int = 32, eps: float = 1e-5) -> None:
        super().__init__(largest_group_count(num_features, num_groups), num_features, eps=eps)


def keeps_channels_last(device: torch.device) -> bool:
    """Whether group norm gives channels_last for channels_last on this device, with this torch.

    On a GPU older ones (2.11 among them) make the input contiguous and leave it so: up to four more
    passes over the activation, since the convolutions around it change it back.
    """
    x = torch.ones(1, 4, 2, 2, device=device).contiguous(memory_format=torch.channels_last)
    return F.group_norm(x, 2).is_contiguous(memory_format=torch.channels_last)
