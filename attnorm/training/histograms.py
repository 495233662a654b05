"""λ, γ and β as histograms during training, by hooks that the trainer never sees."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from torch import Tensor, nn

from attnorm.norms import is_normalizer
from attnorm.norms.observe import record_mixtures
from attnorm.tracking import Tracker


class HistogramRecorder:
    """Records every ``every``-th training step of ``model``, at the first of its micro-batches.

    Args:
        step: optimizer steps completed so far.
    """

    def __init__(
        self, model: nn.Module, tracker: Tracker, every: int, step: Callable[[], int]
    ) -> None:
        self._tracker, self._every, self._step = tracker, every, step
        self._recorded = -1
        self._mixtures: dict[str, Tensor] | None = None
        self._hooks = ExitStack()
        model.register_forward_pre_hook(self._before)
        model.register_forward_hook(self._after)

    def _before(self, model: nn.Module, _inputs: tuple[Tensor, ...]) -> None:
        step = self._step() + 1
        if model.training and step % self._every == 0 and step != self._recorded:
            self._recorded = step
            self._mixtures = self._hooks.enter_context(record_mixtures(model))

    def _after(self, model: nn.Module, _inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        if self._mixtures is None:
            return
        self._hooks.close()
        for name, mixture in self._mixtures.items():
            self._tracker.histogram(f"lambda/{name}", mixture, self._recorded)
        for name, module in model.named_modules():
            if is_normalizer(module):
                for tag, attribute in (("gamma", "weight"), ("beta", "bias")):
                    values = getattr(module, attribute, None)
                    if isinstance(values, Tensor):
                        self._tracker.histogram(f"{tag}/{name}", values.detach(), self._recorded)
        self._mixtures = None
