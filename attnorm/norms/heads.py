"""Attention heads: from an activation to the mixture coefficients λ of its instances."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from attnorm.norms.base import Normalization
from attnorm.norms.statistics import SharedStatistics, group_by_name, unbiased_variance


class SigmoidHead(nn.Linear):
    """λ = sigmoid(W a + b) of the global average a (paper, Figure 3). (N, C, H, W) to (N, R)."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3))
        return torch.sigmoid(
            functional.linear(mean, self.weight.to(mean.dtype), self.bias.to(mean.dtype))
        )


class ConvReluHead(nn.Conv2d):
    """1x1 convolution, ReLU, global average, sigmoid (paper, §3.3). (N, C, H, W) to (N, R).

    Averages of a ReLU are not negative, so every λ is at least 1/2.
    """

    def __init__(
        self,
        num_features: int,
        num_outputs: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, num_outputs, kernel_size=1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return torch.sigmoid(functional.conv2d(x, weight, bias).relu().mean((2, 3)))


class ReleasedHead(nn.Module):
    """The head of the authors' later release. (N, C, H, W) to (N, R).

    Each channel's average over its standard deviation within the instance, a linear map without
    bias (``weight``, (R, C)), batch normalization of the R logits, hard sigmoid relu6(z + 3) / 6.
    """

    eps = 1e-3

    def __init__(
        self,
        num_features: int,
        num_outputs: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_outputs, bias=False, device=device, dtype=dtype)
        self.norm = LogitNorm(num_outputs, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3))
        pixels = x.shape[2] * x.shape[3]
        var = (x - mean[:, :, None, None]).square().sum((2, 3)) / max(pixels - 1, 1)
        relative = mean * torch.rsqrt(var + self.eps)
        logits = functional.linear(relative, self.linear.weight.to(mean.dtype))
        return functional.relu6(self.norm(logits) + 3) / 6


class LogitNorm(Normalization):
    """Batch normalization of (N, R) logits that can share its statistics between processes.

    Not an ``nn.BatchNorm1d``, so that conversion to ``nn.SyncBatchNorm`` leaves it alone.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.momentum, self.group_name = eps, momentum, ""
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device))

    def forward(self, logits: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        normalized = batch_normalized(
            logits,
            self.running_mean,
            self.running_var,
            self.training,
            self.momentum,
            self.eps,
            self.group_name,
        )
        return normalized * self.weight.to(logits.dtype) + self.bias.to(logits.dtype)


def batch_normalized(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    group_name: str,
) -> Tensor:
    """x̂ of (N, C) or (N, C, H, W), as ``functional.batch_norm`` and, in training, its side effect.

    With a ``group_name`` the statistics of a training batch are those of all its processes.
    """
    if not (training and group_name):
        return functional.batch_norm(
            x, running_mean, running_var, None, None, training, momentum, eps
        )
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    count = x.numel() // x.shape[1]
    own_mean = x.mean(axes)
    own_var = (x - own_mean.view(shape)).square().mean(axes)
    group = group_by_name(group_name)
    mean, var, total = SharedStatistics.apply(own_mean, own_var, count, group)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased_variance(var, total).to(running_var.dtype), momentum)
    normalized: Tensor = (x - mean.view(shape)) * torch.rsqrt(var + eps).view(shape)
    return normalized


HEADS: dict[str, Callable[..., nn.Module]] = {
    "sigmoid": SigmoidHead,
    "conv_relu": ConvReluHead,
    "released": ReleasedHead,
}
