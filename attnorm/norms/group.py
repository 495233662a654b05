"""Group Normalization for any number of channels."""

from __future__ import annotations

from torch import nn


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
