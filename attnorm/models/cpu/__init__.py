"""Training on a CPU: the same network, whose layers take fewer and cheaper passes."""

from __future__ import annotations

from torch import nn

from attnorm.models.cpu.activations import fuse_activations
from attnorm.models.cpu.depthwise import keep_strided_depthwise_in_float32
from attnorm.models.cpu.products import convolutions_as_products


def for_training(model: nn.Module, *, bf16: bool) -> nn.Module:
    """Change the layers of a model that is going to be trained on a CPU; returns the model.

    Parameters, their names, and what is computed stay as they are, up to rounding; so does
    evaluation. Statistics that processes share (models/sync_bn.py) have to be arranged before.

    Args:
        model: The network, changed in place.
        bf16: Whether it is going to run under autocast in bfloat16.
    """
    if bf16:
        model = keep_strided_depthwise_in_float32(model)
    return fuse_activations(convolutions_as_products(model))
