"""What the convolutions of this room have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnorm.norms.fused import runs_now

Pair = tuple[int, int]


def trains_now(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether this is a step of training on a CPU that nothing traces or compiles."""
    return convolution.training and x.is_cpu and x.dim() == 4 and runs_now(x)


def computing_dtype(x: Tensor) -> torch.dtype:
    """The format in which a convolution of x computes: autocast's, if it is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


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
