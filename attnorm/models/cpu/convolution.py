"""What the convolutions of this room have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attnorm.norms.fused import runs_now

Pair = tuple[int, int]


def trains_now(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether this is a step of training on a CPU that nothing traces or compiles."""
    return convolution.training and x.is_cpu and x.dim() == 4 and runs_now(x)


def computing_dtype(x: Tensor) -> torch.dtype:
    """The format in which a convolution of x computes: autocast's, if it is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def run(function: type[torch.autograd.Function], convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """The function of x, weight, bias, stride and padding, in the format of autocast."""
    dtype = computing_dtype(x)
    bias = None if convolution.bias is None else convolution.bias.to(dtype)
    y: Tensor = function.apply(  # type: ignore[no-untyped-call]
        *(x.to(dtype), convolution.weight.to(dtype), bias),
        *(convolution.stride, convolution.padding),
    )
    return y


def remember(
    ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
) -> None:
    """For backward, what :func:`run` has handed over."""
    ctx.save_for_backward(x, weight)
    ctx.stride, ctx.padding = stride, padding
    ctx.bias_shape = None if bias is None else bias.shape


def torch_gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    groups: int,
    needs: tuple[bool, bool, bool],
    bias_shape: torch.Size | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, weight and bias, as torch has them; they can be differentiated again."""
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        *(dy, x, weight, bias_shape, stride, padding, (1, 1), False, (0, 0), groups, needs)
    )
    return gradients


def is_plain(convolution: nn.Conv2d) -> bool:
    """Whether its kernel is dense, and what it pads with are zeros, told in numbers."""
    zeros = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return zeros and convolution.dilation == (1, 1)


def extent(size: int, kernel: int, stride: int, padding: int) -> int:
    """Of a convolution's result along one axis."""
    return (size + 2 * padding - kernel) // stride + 1


def padded(x: Tensor, padding: Pair) -> Tensor:
    """x with zeros around every image; x itself if there are none."""
    if padding == (0, 0):
        return x
    return functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))


def windows_of(x: Tensor, weight: Tensor, stride: Pair) -> Tensor:
    """(N, H', W', kernel height, kernel width, C): a view of an x that has been padded."""
    by_rows = x.permute(0, 2, 3, 1).unfold(1, weight.shape[2], stride[0])
    return by_rows.unfold(2, weight.shape[3], stride[1]).permute(0, 1, 2, 4, 5, 3)
