"""Networks that only need their structure: built once, without memory for their weights."""

import functools

import torch
from torch import nn

import attnorm

ARCHITECTURES = ("resnet50", "resnet101", "densenet161", "mobilenetv2")
NORMALIZERS = ("bn", "gn", "sn", "se", "an")
COMBINATIONS = [(arch, norm) for arch in ARCHITECTURES for norm in NORMALIZERS]


@functools.cache
def structure(arch: str, norm: str) -> nn.Module:
    """The network of one combination with weights on meta. Not to be changed."""
    with torch.device("meta"):
        return attnorm.create_model(arch, norm=norm)
