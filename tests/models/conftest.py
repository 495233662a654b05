"""Networks that only need their structure: built once, without memory for their weights."""

import functools

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import attnorm

ARCHITECTURES = ("resnet50", "resnet101", "densenet161", "mobilenetv2")
NORMALIZERS = ("bn", "gn", "sn", "se", "an")
COMBINATIONS = [(arch, norm) for arch in ARCHITECTURES for norm in NORMALIZERS]


@functools.cache
def structure(arch: str, norm: str) -> nn.Module:
    """The network of one combination with fake weights. Not to be changed."""
    with FakeTensorMode():
        return attnorm.create_model(arch, norm=norm)
