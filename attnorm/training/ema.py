"""An exponential moving average of the weights, evaluated beside the weights themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """After every step: average ← decay · average + (1 − decay) · weights; running statistics too.

    The first step copies the weights, so the average never remembers the initialization.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._averaged = AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True
        )

    @property
    def model(self) -> nn.Module:
        """The network with the averaged weights."""
        module: nn.Module = self._averaged.module
        return module

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self._averaged.update_parameters(model)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "steps": int(self._averaged.n_averaged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self._averaged.n_averaged.fill_(state["steps"])
