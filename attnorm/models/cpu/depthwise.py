"""Depthwise convolutions, around two gradients for which oneDNN has no code of its own.

Its general code (torch 2.15, Zen 5) takes for the weights' gradient, where the image is smaller
than the kernel, 10 times as long as it should in float32 and a hundred times in bfloat16, and for
the image's gradient of a convolution with a stride in bfloat16 as much: together more than all the
rest of a step of MobileNet-v2 in bfloat16.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attnorm.models.cpu.convolution import (
    Pair,
    computing_dtype,
    extent,
    is_plain,
    padded,
    remember,
    run,
    torch_gradients,
    trains_now,
    windows_of,
)


def mend_depthwise_convolutions(model: nn.Module) -> nn.Module:
    """Let depthwise convolutions train without those two; returns the model, changed.

    Names, weights, and evaluation stay as they are; values are the convolution's up to rounding.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_depthwise(module):
            module.__class__ = DepthwiseConv2d
    return model


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of every channel by itself, (N, C, H, W) to (N, C, H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        """As :class:`torch.nn.Conv2d`; under autocast in its format."""
        strided16 = max(self.stride) > 1 and computing_dtype(x) == torch.bfloat16
        if not trains_now(self, x) or not (strided16 or _is_small(x, self.weight)):
            return super().forward(x)
        return run(_Depthwise, self, x)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
    ) -> Tensor:
        remember(ctx, x, weight, bias, stride, padding)
        return functional.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        needs_dx, needs_dw, needs_db = needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # create_graph=True
            of_bias = ctx.bias_shape
            found = torch_gradients(dy, x, weight, stride, padding, len(weight), needs, of_bias)
            return (*found, None, None)
        dx = dw = None
        if needs_dx and max(stride) > 1 and x.dtype == torch.bfloat16:
            dx = _gradient(0, _spread(dy, x, weight, stride, padding), x, weight, (1, 1), padding)
        elif needs_dx:
            dx = _gradient(0, dy, x, weight, stride, padding)
        if needs_dw and _is_small(x, weight):
            dw = _weights_gradient(dy, x, weight, stride, padding)
        elif needs_dw:
            dw = _gradient(1, dy, x, weight, stride, padding)
        return dx, dw, dy.sum((0, 2, 3)) if needs_db else None, None, None


def _gradient(
    which: int, dy: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair
) -> Tensor:
    """torch's, of x (0) or weight (1) alone."""
    needs = (which == 0, which == 1, False)
    return torch_gradients(dy, x, weight, stride, padding, len(weight), needs)[which]


def _spread(dy: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """dy of the convolution without a stride whose result has y's pixels among others."""
    extents = [extent(x.shape[2 + i], weight.shape[2 + i], 1, padding[i]) for i in (0, 1)]
    last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    spread = torch.empty((*dy.shape[:2], *extents), dtype=dy.dtype, memory_format=layout).zero_()
    spread[:, :, :: stride[0], :: stride[1]] = dy
    return spread


def _weights_gradient(dy: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """For every place of the kernel what dy and the pixels below it have in common."""
    windows = windows_of(padded(x.float(), padding), weight, stride).permute(0, 5, 1, 2, 3, 4)
    dy = dy.float()
    dw = torch.empty_like(weight)
    for i, j in product(range(weight.shape[2]), range(weight.shape[3])):
        dw[:, 0, i, j] = (windows[..., i, j] * dy).sum((0, 2, 3))
    return dw


def _is_small(x: Tensor, weight: Tensor) -> bool:
    return x.shape[2] < weight.shape[2] or x.shape[3] < weight.shape[3]


def _is_depthwise(convolution: nn.Conv2d) -> bool:
    channels = convolution.in_channels
    return convolution.groups == channels == convolution.out_channels > 1 and is_plain(convolution)
