"""Ghost Batch Normalization: statistics of parts of a batch (Hoffer et al., 2017, Algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over ``ghost_batch`` images at a time; in evaluation the same as batch norm.

    The running statistics are those of one part after another, so their momentum is one of parts.

    Args:
        ghost_batch: images that share statistics; the last part of a batch may have fewer.

    Raises:
        ValueError: a ghost batch of less than one image.
    """

    def __init__(
        self, num_features: int, ghost_batch: int = 32, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        if ghost_batch < 1:
            raise ValueError(f"ghost_batch={ghost_batch}: it must be at least 1")
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.ghost_batch = ghost_batch

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or len(input) <= self.ghost_batch:
            return super().forward(input)
        return torch.cat(
            [super(GhostBatchNorm2d, self).forward(part) for part in input.split(self.ghost_batch)]
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_batch={self.ghost_batch}"
