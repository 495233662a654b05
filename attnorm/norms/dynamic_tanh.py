"""Dynamic Tanh: no statistics at all (Zhu et al., Transformers without Normalization, 2025)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnorm.norms.base import Normalization


class DynamicTanh2d(Normalization):
    """γ · tanh(α x) + β, with one α for the layer (its equation 1).

    Args:
        num_features: channels C of (N, C, H, W).
        initial_alpha: where α starts; 0.5 in the paper.
    """

    def __init__(self, num_features: int, initial_alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), initial_alpha))
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        bounded = torch.tanh(self.alpha.to(x.dtype) * x)
        scale, offset = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return torch.addcmul(offset.view(-1, 1, 1), bounded, scale.view(-1, 1, 1))
