"""An exponential moving average of the weights, evaluated beside the weights themselves."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from attnorm.config import EmaConfig


class WeightAverage:
    """After every ``every``-th step: average ← decay · average + (1 − decay) · weights.

    Running statistics too. The first step copies the weights, so the average never remembers the
    initialization. What is counted (``num_batches_tracked``) is copied. An update launches a few
    kernels for all tensors together, and never waits for a GPU.

    Args:
        model: on its device; tensors that it holds now are averaged.
        decay: of an update, between 0 and 1.
        every: steps from one update to the next.
        warmup: the decay of update t (from 1 after the copy) is at most 1 − (1 + t)^(−2/3), the
            rule of timm's ModelEmaV3.
    """

    def __init__(
        self, model: nn.Module, decay: float, every: int = 1, warmup: bool = False
    ) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.every, self.warmup, self.steps = decay, every, warmup, 0
        self._floats, self._counts = _tensors(self.model)
        self._source_floats, self._source_counts = _tensors(model)

    @torch.no_grad()
    def update(self) -> None:
        """Count the weights of a finished step."""
        if self.steps == 0:
            torch._foreach_copy_(self._floats, self._source_floats)
        elif self.steps % self.every == 0:
            decay = self.decay_of(self.steps // self.every)
            torch._foreach_lerp_(self._floats, self._source_floats, 1 - decay)
        if self._counts and self.steps % self.every == 0:
            torch._foreach_copy_(self._counts, self._source_counts)
        self.steps += 1

    def decay_of(self, update: int) -> float:
        """Of one update; the copy was number 0."""
        if not self.warmup:
            return self.decay
        return min(self.decay, 1 - float((1 + update) ** (-2 / 3)))

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]


def average_of(model: nn.Module, config: EmaConfig) -> WeightAverage | None:
    """What ``ema`` asks for."""
    if config.decay is None:
        return None
    return WeightAverage(model, config.decay, config.every, config.warmup)


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers: those of fractions, and those of whole numbers."""
    tensors = [*model.parameters(), *model.buffers()]
    return (
        [tensor.detach() for tensor in tensors if tensor.is_floating_point()],
        [tensor for tensor in tensors if not tensor.is_floating_point()],
    )
