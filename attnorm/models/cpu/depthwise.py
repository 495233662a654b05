"""Depthwise convolutions with a stride, which bfloat16 makes slower: they stay in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def keep_strided_depthwise_in_float32(model: nn.Module) -> nn.Module:
    """Let autocast leave depthwise convolutions with a stride alone; returns the model, changed.

    oneDNN's backward pass of them in bfloat16 takes ten times as long as in float32 (torch 2.15,
    Zen 4): four such layers make all of MobileNet-v2 slower than in float32, and the others do not.
    Names, weights and what the layer computes in float32 stay as they are.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_strided_depthwise(module):
            module.__class__ = Float32Conv2d
    return model


class Float32Conv2d(nn.Conv2d):
    """A convolution that computes in float32 under autocast too, (N, C, H, W) to the same."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def _is_strided_depthwise(convolution: nn.Conv2d) -> bool:
    channels = convolution.in_channels
    return convolution.groups == channels > 1 and max(convolution.stride) > 1
