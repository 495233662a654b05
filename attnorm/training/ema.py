"""An exponential moving average of the weights, evaluated beside the weights themselves."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """After every step: average ← decay · average + (1 − decay) · weights; running statistics too.

    The first step copies the weights, so the average never remembers the initialization. What is
    counted (``num_batches_tracked``) is copied. An update launches a few kernels for all tensors
    together, and never waits for a GPU.

    Args:
        model: on its device; tensors that it holds now are averaged.
        decay: between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.steps = decay, 0
        self._floats, self._counts = _tensors(self.model)
        self._source_floats, self._source_counts = _tensors(model)

    @torch.no_grad()
    def update(self) -> None:
        """Count the weights of a finished step."""
        if self.steps == 0:
            torch._foreach_copy_(self._floats, self._source_floats)
        else:
            torch._foreach_lerp_(self._floats, self._source_floats, 1 - self.decay)
        if self._counts:
            torch._foreach_copy_(self._counts, self._source_counts)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers: those of fractions, and those of whole numbers."""
    tensors = [*model.parameters(), *model.buffers()]
    return (
        [tensor.detach() for tensor in tensors if tensor.is_floating_point()],
        [tensor for tensor in tensors if not tensor.is_floating_point()],
    )
