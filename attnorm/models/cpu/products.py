"""Convolutions with many weights for few pixels, as matrix products.

oneDNN's convolutions want their weights in blocks, and torch has them reordered at every call,
three times a step: a fifth of a step of ResNet-50 on images of 64² (torch 2.15, Zen 5). oneDNN's
products read weights as they lie. Where there are many pixels its convolutions are faster.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

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
from attnorm.processor import processor

WEIGHTS_PER_PIXEL = 256
"""From how many weights for every pixel of the output on: measured, with little between 128 and
1,024 in ResNet-50, DenseNet-161 and MobileNet-v2, float32 and bfloat16."""


def convolutions_as_products(model: nn.Module) -> nn.Module:
    """Let convolutions train as matrix products where that is faster; returns the model, changed.

    Names, weights and their layout stay; values are the convolution's up to rounding. Evaluation,
    other layouts than channels_last, types that :func:`product_dtypes` does not list, and compiled
    models run torch's convolutions.
    """
    if not product_dtypes():
        return model
    for module in model.modules():
        if type(module) is nn.Conv2d and module.groups == 1 and is_plain(module):
            module.__class__ = ProductConv2d
    return model


@cache
def product_dtypes() -> tuple[torch.dtype, ...]:
    """Return the types in which oneDNN's matrix product works on this processor and is fast.

    Empty without oneDNN, and for instructions with which the product was never measured. oneDNN has
    no product in bfloat16 without AVX512.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return ()
    if processor().instructions == "AVX512" and processor().has_bfloat16:
        return (torch.float32, torch.bfloat16)
    return (torch.float32,) if processor().instructions in ("AVX2", "AVX512") else ()


class ProductConv2d(nn.Conv2d):
    """A convolution, (N, C, H, W) to (N, K, H', W'), with neither groups nor dilation."""

    def forward(self, x: Tensor) -> Tensor:
        """As :class:`torch.nn.Conv2d`; under autocast in its format."""
        can = trains_now(self, x) and computing_dtype(x) in product_dtypes()
        if not can or not self._is_worth_it(x):
            return super().forward(x)
        return run(_Convolution, self, x)

    def _is_worth_it(self, x: Tensor) -> bool:
        last = torch.channels_last
        if x.shape[1] != self.in_channels or not x.is_contiguous(memory_format=last):
            return False
        if not self.weight.is_contiguous(memory_format=last):
            return False
        pixels = len(x) * _extent(self, x, 0) * _extent(self, x, 1)
        return 0 < WEIGHTS_PER_PIXEL * pixels <= self.weight.numel()


class _Convolution(torch.autograd.Function):
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
        windows = windows_of(padded(x, padding), weight, stride)
        return _image(_product(_rows(windows), _matrix(weight), bias), windows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight = ctx.saved_tensors
        stride, padding, needs = ctx.stride, ctx.padding, ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # create_graph=True
            found = torch_gradients(dy, x, weight, stride, padding, 1, needs, ctx.bias_shape)
            return (*found, None, None)
        dy = dy.permute(0, 2, 3, 1).reshape(-1, dy.shape[1])
        dx = _images_gradient(dy, x, weight, stride, padding) if needs[0] else None
        dw = _weights_gradient(dy, x, weight, stride, padding) if needs[1] else None
        return dx, dw, dy.sum(0) if needs[2] else None, None, None


def _images_gradient(dy: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """dx of x's shape: what every window asks for, added up where windows overlap."""
    by_window = _product(dy, _matrix(weight).t())
    if _is_one_to_one(weight, stride, padding):
        return _image(by_window, x.permute(0, 2, 3, 1))
    dx = torch.zeros_like(padded(x, padding))
    places = windows_of(dx, weight, stride)
    by_window = by_window.view(places.shape)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            places[:, :, :, i, j] += by_window[:, :, :, i, j]
    height, width = x.shape[2:]
    inside = dx[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    return inside.contiguous(memory_format=torch.channels_last)


def _weights_gradient(dy: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    rows = _rows(windows_of(padded(x, padding), weight, stride))
    # torch's product in float32 is not oneDNN's; oneDNN's wants its first factor in rows.
    dw = dy.t() @ rows if dy.dtype == torch.bfloat16 else _product(dy.t(), rows.t())
    outputs, channels, *kernel = weight.shape
    return dw.view(outputs, *kernel, channels).permute(0, 3, 1, 2)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows weightᵀ (+ bias), by oneDNN in float32 too, unlike ``functional.linear``.

    Both have to be dense: for rows at a distance oneDNN takes a thousand times as long.
    """
    y: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return y


def _rows(windows: Tensor) -> Tensor:
    """(N H' W', kernel height · kernel width · C), dense."""
    return windows.reshape(windows.shape[:3].numel(), -1).contiguous()


def _matrix(weight: Tensor) -> Tensor:
    """(K, kernel height · kernel width · C): a view of a channels_last weight."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _image(rows: Tensor, windows: Tensor) -> Tensor:
    """(N H' W', K) as (N, K, H', W'), channels_last: in place, since autograd lets nothing in
    place follow where a function gives back a view."""
    n, height, width = windows.shape[:3]
    channels = rows.shape[1]
    strides = (height * width * channels, 1, width * channels, channels)
    return rows.as_strided_((n, channels, height, width), strides)


def _extent(convolution: nn.Conv2d, x: Tensor, axis: int) -> int:
    padding = convolution.padding[axis]
    assert isinstance(padding, int)
    return extent(
        x.shape[2 + axis], convolution.kernel_size[axis], convolution.stride[axis], padding
    )


def _is_one_to_one(weight: Tensor, stride: Pair, padding: Pair) -> bool:
    return weight.shape[2:].numel() == max(stride) == 1 and padding == (0, 0)
