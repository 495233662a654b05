"""Watching Attentive Normalization at work: the mixture weights λ of a model's layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attnorm.norms.attentive import AttentiveNorm2d


def attentive_layers(model: nn.Module) -> dict[str, AttentiveNorm2d]:
    """AN layers by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, AttentiveNorm2d)
    }


@contextmanager
def record_mixtures(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yields what will hold, after each forward, λ (N, K) of every AN layer by name.

    With ``separate_attention`` they are (N, 2 K): those of γ, then those of β.
    """
    latest: dict[str, Tensor] = {}
    handles = []
    for name, layer in attentive_layers(model).items():
        handles += _watch(layer, name, latest)
    try:
        yield latest
    finally:
        for handle in handles:
            handle.remove()


def _watch(
    layer: AttentiveNorm2d, name: str, latest: dict[str, Tensor]
) -> list[torch.utils.hooks.RemovableHandle]:
    called = False

    def on_head(_head: nn.Module, _inputs: tuple[Tensor, ...], mixture: Tensor) -> None:
        nonlocal called
        called = True
        latest[name] = mixture.detach()

    def on_layer(_layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        nonlocal called
        if not called:  # the fused operator computes λ itself, with a head that has no state
            with torch.no_grad(), torch.autocast(inputs[0].device.type, enabled=False):
                layer.attention(inputs[0].float())
        called = False

    return [layer.attention.register_forward_hook(on_head), layer.register_forward_hook(on_layer)]
