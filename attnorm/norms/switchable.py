"""Switchable Normalization: a learned mixture of instance, layer and batch statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnorm.norms.base import Normalization


class SwitchNorm2d(Normalization):
    """Normalize by statistics that are softmax-weighted sums of IN, LN and BN statistics.

    Luo, Ren and Peng, "Differentiable Learning-to-Normalize via Switchable Normalization" (2018),
    equations 2-5. Input and output are (N, C, H, W); the output keeps the input's dtype and memory
    format, statistics are at least float32. Means and variances have separate mixture weights. As
    in the authors' code the instance variance is the unbiased one, from which the other two follow
    by the law of total variance; where H·W = 1 it is 0.

    In evaluation the batch statistics are replaced by their moving averages. Processes of a
    distributed run keep their own batch statistics: (8, 32) in Table 1 is 8 processes × 32 images.

    Args:
        num_features: C.
        eps: Added to the mixed variance.
        momentum: Weight of the newest batch in the moving averages, as in ``nn.BatchNorm2d``;
            ``None`` averages all batches equally (the authors' "batch average").
        using_bn: Mix in batch statistics; without them there is nothing to track.
        affine: Learn a scale and an offset per channel.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        using_bn: bool = True,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.using_bn = using_bn
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.mean_weight = nn.Parameter(torch.ones(3 if using_bn else 2))
        self.var_weight = nn.Parameter(torch.ones(3 if using_bn else 2))
        self.register_buffer("running_mean", torch.zeros(num_features) if using_bn else None)
        self.register_buffer("running_var", torch.ones(num_features) if using_bn else None)
        counter = torch.tensor(0, dtype=torch.long) if using_bn else None
        self.register_buffer("num_batches_tracked", counter)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError(f"SwitchNorm2d expects (N, C, H, W), got {tuple(x.shape)}")
        mean, variance = self._mixed_statistics(*instance_statistics(x))
        scale = torch.rsqrt(variance + self.eps)
        scale = scale if self.weight is None else scale * self.weight
        offset = -scale * mean if self.bias is None else self.bias - scale * mean
        return (x * scale[:, :, None, None] + offset[:, :, None, None]).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"using_bn={self.using_bn}"
        )

    def _mixed_statistics(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed mean and variance, both (N, C), from those of the instances, both (N, C)."""
        layer_mean, layer_variance = _pooled(mean, variance, dim=1)
        means, variances = [mean, layer_mean[:, None]], [variance, layer_variance[:, None]]
        if self.using_bn:
            batch_mean, batch_variance = self._batch_statistics(mean, variance)
            means.append(batch_mean)
            variances.append(batch_variance)
        mean_shares = torch.softmax(self.mean_weight, 0).unbind()
        variance_shares = torch.softmax(self.var_weight, 0).unbind()
        # Not a matrix product, which autocast would round to half precision.
        mixed_mean = sum(share * part for share, part in zip(mean_shares, means, strict=True))
        mixed_variance = sum(s * part for s, part in zip(variance_shares, variances, strict=True))
        assert isinstance(mixed_mean, Tensor)
        assert isinstance(mixed_variance, Tensor)
        return mixed_mean, mixed_variance

    def _batch_statistics(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        if not self.training:
            return self.running_mean, self.running_var
        batch_mean, batch_variance = _pooled(mean, variance, dim=0)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            newest = (
                self.num_batches_tracked.reciprocal() if self.momentum is None else self.momentum
            )
            self.running_mean.lerp_(batch_mean.to(self.running_mean.dtype), newest)
            self.running_var.lerp_(batch_variance.to(self.running_var.dtype), newest)
        return batch_mean, batch_variance


def instance_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each (n, c), both (N, C), in float32 or better.

    A single value has variance 0. Centred, so that nothing cancels where the mean is large.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = x.mean((2, 3))
    squares = (x - mean[:, :, None, None]).square().sum((2, 3))
    return mean, squares / max(x.shape[2] * x.shape[3] - 1, 1)


def _pooled(mean: Tensor, variance: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of equal-sized parts together: within the parts, plus between them."""
    pooled_mean = mean.mean(dim)
    between = (mean - pooled_mean.unsqueeze(dim)).square().mean(dim)
    return pooled_mean, variance.mean(dim) + between
