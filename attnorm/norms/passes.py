"""The passes over an activation that Attentive Normalization consists of, in plain torch.

Three sets of kernels have this interface: this one (any device, any dtype), ``native`` (float32 and
bfloat16 on a CPU with a C compiler) and ``triton_passes`` (CUDA). ``fused`` strings them together.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Activation(IntEnum):
    """What is applied to the result: nothing, or what cuts it below 0, or above 6 as well."""

    NONE = 0
    RELU = 1
    RELU6 = 2


ACTIVATIONS = {None: Activation.NONE, "relu": Activation.RELU, "relu6": Activation.RELU6}


class Passes(Protocol):
    """x is (N, C, H, W), dense, contiguous or channels_last; the others are contiguous.

    Small tensors are float32 (float64 for a float64 x). R is the number of attention outputs: K, or
    2 K where scales and offsets have their own. ``centre`` and ``rstd`` (C) are the mean and the
    reciprocal standard deviation that x is normalized with; ``affine`` (2, N, C) holds the mixtures
    Γ and Β of the K scales and offsets, so that x̂ = rstd (x - centre) and y = Γ x̂ + Β.

    Attributes:
        ignores_autocast: no operation in them is one that autocast changes.
    """

    ignores_autocast: bool

    def prepare(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        head_weight: Tensor,
        head_bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """λ (N, R; paper, equation 6), affine; centre, unbiased variance and rstd of this batch."""
        ...

    def apply(
        self, x: Tensor, affine: Tensor, centre: Tensor, rstd: Tensor, activation: int
    ) -> Tensor:
        """y (paper, equation 7) in x's dtype and memory format, ``activation`` applied."""
        ...

    def collect(
        self,
        dy: Tensor,
        x: Tensor,
        mixture: Tensor,
        weight: Tensor,
        bias: Tensor,
        head_weight: Tensor,
        centre: Tensor,
        rstd: Tensor,
        activation: int,
    ) -> Collected:
        """Everything that backward needs to know before it can write dx.

        dy has x's dtype and memory format; where ``activation`` cut y, it counts as 0.
        """
        ...

    def gradient(
        self,
        dy: Tensor,
        x: Tensor,
        affine: Tensor,
        centre: Tensor,
        rstd: Tensor,
        mean_grad: Tensor,
        folded: Tensor,
        activation: int,
    ) -> Tensor:
        """dx in x's dtype and memory format."""
        ...


class Collected(NamedTuple):
    """Gradients of everything but x, and what dx takes.

    ``mean_grad`` (N, C) is the gradient of the average that the head reads; ``folded`` (2, C) holds
    the means over the batch of Γ dy and Γ dy x̂.
    """

    weight_grad: Tensor
    bias_grad: Tensor
    head_weight_grad: Tensor
    head_bias_grad: Tensor
    affine: Tensor
    mean_grad: Tensor
    folded: Tensor


def statistics_dtype(x: Tensor) -> torch.dtype:
    """The dtype of everything smaller than x: float32, or float64 for a float64 x."""
    return torch.promote_types(x.dtype, torch.float32)


class PlainPasses:
    """Plain torch operations."""

    ignores_autocast = False

    def prepare(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        head_weight: Tensor,
        head_bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        mean, var = _moments(x)
        centre = mean.mean(0)
        biased = torch.addcmul(var, mean - centre, mean - centre).mean(0)
        count = x.numel() // x.shape[1]
        mixture = torch.sigmoid(torch.addmm(head_bias, mean, head_weight.t()))
        unbiased = biased * (count / max(count - 1, 1))
        return mixture, _affine(mixture, weight, bias), centre, unbiased, torch.rsqrt(biased + eps)

    def apply(
        self, x: Tensor, affine: Tensor, centre: Tensor, rstd: Tensor, activation: int
    ) -> Tensor:
        y = _transformed(_centred(x, centre), affine[0] * rstd, affine[1])
        return activated_(y, activation).to(x.dtype)

    def collect(
        self,
        dy: Tensor,
        x: Tensor,
        mixture: Tensor,
        weight: Tensor,
        bias: Tensor,
        head_weight: Tensor,
        centre: Tensor,
        rstd: Tensor,
        activation: int,
    ) -> Collected:
        affine = _affine(mixture, weight, bias)
        deviation = _centred(x, centre)
        dy = _uncut(dy, deviation, affine, rstd, activation)
        mean = deviation.mean((2, 3)) + centre
        first, second = dy.sum((2, 3)), deviation.mul_(dy).sum((2, 3)) * rstd
        for_gain, for_offset = _halves(mixture, weight.shape[0])
        gain_part, offset_part = second @ weight.t(), first @ bias.t()
        shared = mixture.shape[1] == weight.shape[0]
        part = gain_part + offset_part if shared else torch.cat([gain_part, offset_part], 1)
        logit_grad = part * mixture * (1 - mixture)
        folded = torch.stack([(affine[0] * first).sum(0), (affine[0] * second).sum(0)])
        return Collected(
            weight_grad=for_gain.t() @ second,
            bias_grad=for_offset.t() @ first,
            head_weight_grad=logit_grad.t() @ mean,
            head_bias_grad=logit_grad.sum(0),
            affine=affine,
            mean_grad=logit_grad @ head_weight,
            folded=folded / (x.numel() / x.shape[1]),
        )

    def gradient(
        self,
        dy: Tensor,
        x: Tensor,
        affine: Tensor,
        centre: Tensor,
        rstd: Tensor,
        mean_grad: Tensor,
        folded: Tensor,
        activation: int,
    ) -> Tensor:
        deviation = _centred(x, centre)
        dy = _uncut(dy, deviation, affine, rstd, activation)
        shift = mean_grad / (x.shape[2] * x.shape[3]) - rstd * folded[0]
        dx = _transformed(deviation, (-rstd.square() * folded[1])[None], shift)
        return dx.addcmul_(dy, _per_instance(affine[0] * rstd)).to(x.dtype)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over H, W, both (N, C)."""
    x = x.to(statistics_dtype(x))
    # On a CPU var_mean is ten times slower than this, in either layout.
    mean = x.mean((2, 3))
    return mean, (x - _per_instance(mean)).square_().mean((2, 3))


def _per_instance(values: Tensor) -> Tensor:
    return values[:, :, None, None]


def _centred(x: Tensor, centre: Tensor) -> Tensor:
    # Subtracting first keeps the digits that matter where the mean is much larger than the
    # deviation; scale x + (offset - scale centre) would lose them.
    return x.to(centre.dtype) - centre[:, None, None]


def _transformed(deviation: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """scale · deviation + offset, in place."""
    return deviation.mul_(_per_instance(scale)).add_(_per_instance(offset))


def activated_(y: Tensor, activation: int) -> Tensor:
    """y in place, with its activation."""
    if activation == Activation.NONE:
        return y
    return y.clamp_(0, 6) if activation == Activation.RELU6 else y.relu_()


def _uncut(dy: Tensor, deviation: Tensor, affine: Tensor, rstd: Tensor, activation: int) -> Tensor:
    dy = dy.to(deviation.dtype)
    if activation == Activation.NONE:
        return dy
    y = torch.addcmul(_per_instance(affine[1]), deviation, _per_instance(affine[0] * rstd))
    cut = y <= 0
    return dy.masked_fill(cut.logical_or_(y >= 6) if activation == Activation.RELU6 else cut, 0)


def _halves(mixture: Tensor, num_components: int) -> tuple[Tensor, Tensor]:
    """λ for the scales and λ for the offsets, one and the same unless there are 2 K of them."""
    return mixture[:, :num_components], mixture[:, -num_components:]


def _affine(mixture: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    for_gain, for_offset = _halves(mixture, weight.shape[0])
    return torch.stack([for_gain @ weight, for_offset @ bias])
