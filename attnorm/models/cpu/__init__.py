"""Training on a CPU: the same network, whose layers take fewer and cheaper passes."""

from __future__ import annotations

from torch import nn

from attnorm.models.cpu.activations import fuse_activations
from attnorm.models.cpu.depthwise import mend_depthwise_convolutions
from attnorm.models.cpu.products import convolutions_as_products


def for_training(model: nn.Module) -> nn.Module:
    """Change the layers of a model that is going to be trained on a CPU; returns the model.

    Parameters, their names, and what is computed stay as they are, up to rounding; so does
    evaluation. Statistics that processes share (models/sync_bn.py) have to be arranged before.
    """
    return fuse_activations(convolutions_as_products(mend_depthwise_convolutions(model)))
