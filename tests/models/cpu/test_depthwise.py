"""Strided depthwise convolutions under autocast: float32 inside, nothing else changed."""

from __future__ import annotations

import torch
from torch import nn

from attnorm import create_model
from attnorm.models.cpu.depthwise import Float32Conv2d, keep_strided_depthwise_in_float32


def test_the_strided_depthwise_convolutions_and_no_others_are_kept() -> None:
    model = keep_strided_depthwise_in_float32(create_model("mobilenetv2", "bn", num_classes=3))
    kept = [name for name, module in model.named_modules() if type(module) is Float32Conv2d]
    assert kept == [f"blocks.{stage}.0.conv_dw" for stage in (1, 2, 3, 5)]
    resnet = keep_strided_depthwise_in_float32(create_model("resnet50", "bn", num_classes=3))
    assert not any(type(module) is Float32Conv2d for module in resnet.modules())


def test_it_computes_in_float32_under_autocast_and_takes_the_same_weights() -> None:
    plain = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
    state = plain.state_dict()
    x = torch.randn(2, 8, 6, 6)
    wanted = plain(x)
    kept = keep_strided_depthwise_in_float32(nn.Sequential(plain))
    assert kept[0].state_dict().keys() == state.keys()
    with torch.autocast("cpu", torch.bfloat16):
        y = kept(x)
        half = kept(x.bfloat16())
    assert y.dtype == half.dtype == torch.float32
    assert torch.equal(y, wanted)
    assert torch.equal(kept(x), wanted), "nothing changes without autocast"
