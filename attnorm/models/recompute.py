"""timm's ``memory_efficient`` DenseNet, without a second vote of each batch on the statistics."""

from __future__ import annotations

import math

from timm.models.densenet import DenseLayer
from torch import nn


def correct_recomputed_statistics(model: nn.Module) -> None:
    """Let two updates of running statistics do what one does.

    A dense layer that backward computes again normalizes its batch twice, and both times the
    running statistics r move towards those of the batch, b: r ← (1 − m) r + m b. With
    m' = 1 − √(1 − m) for m, two updates with the same b are one update with m.
    """
    layers = [module for module in model.modules() if isinstance(module, DenseLayer)]
    for layer in layers:
        if layer.grad_checkpointing:
            for norm in layer.norm1.modules():  # the normalizer may have an activation beside it
                momentum = getattr(norm, "momentum", None)
                if momentum is not None:  # one without running statistics has none
                    norm.momentum = 1 - math.sqrt(1 - momentum)
