"""Attentive Normalization as the paper's Figure 3 writes it, operation by operation."""

from __future__ import annotations

from torch import Tensor


def attentive_affine(normalized: Tensor, mixture: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Equation 7: Σ_k λ_k (γ_k x̂ + β_k).

    Args:
        normalized: x̂, (N, C, H, W).
        mixture: λ, (N, K), or (N, 2 K) with coefficients for γ and others for β.
        weight: γ, (K, C).
        bias: β, (K, C).
    """
    num_components = weight.shape[0]
    gain = mixture[:, :num_components] @ weight
    offset = mixture[:, -num_components:] @ bias
    return gain[:, :, None, None] * normalized + offset[:, :, None, None]
