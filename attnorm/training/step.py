"""One optimizer step: forward, loss, backward, update, on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attnorm.config import Config
from attnorm.config.run import GRAPH_MODES
from attnorm.training.precision import Precision
from attnorm.training.state import TrainState
from attnorm.training.task import Task


class TrainingStep:
    """Takes micro-batches from a loader and changes the state by one step.

    Where the time goes is booked in ``state.meter.clock``: data, forward, backward, communication
    (what is left of the gradients' exchange when the last one is computed), optimizer.
    """

    def __init__(self, config: Config, task: Task, state: TrainState, precision: Precision) -> None:
        self.task, self.state, self.precision = task, state, precision
        self.accumulation = config.grad_accumulation
        self._clip_norm = config.optim.clip_norm
        self._replays_graphs = config.compile and config.compile_mode in GRAPH_MODES
        if config.compile:
            state.model.compile(mode=config.compile_mode)
        self.replica = self._replicate(state.model)
        state.optimizer.register_step_post_hook(self._count_overflow)

    def _replicate(self, model: nn.Module) -> nn.Module:
        """The model as the step calls it: with several processes, wrapped in DDP."""
        state, process = self.state, self.state.process
        if process.world_size == 1:
            return model
        # Backward ends with the layers that forward begins with.
        last_computed = next(p for p in model.parameters() if p.requires_grad)
        last_computed.register_post_accumulate_grad_hook(
            lambda _: state.meter.clock.mark("backward")
        )
        return DistributedDataParallel(
            model,
            device_ids=[process.device] if process.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # see distributed.broadcast_buffers
        )

    def __call__(self, batches: Iterator[Any], measure_gradient: bool) -> Tensor | None:
        """One step from ``grad_accumulation`` micro-batches; the gradient's norm if wanted."""
        state, clock = self.state, self.state.meter.clock
        after_backward = "backward" if self.replica is state.model else "communication"
        clock.mark("other")
        for micro in range(self.accumulation):
            batch = next(batches)
            clock.mark("data")
            if self._replays_graphs:
                torch.compiler.cudagraph_mark_step_begin()
            with self._no_sync() if micro + 1 < self.accumulation else nullcontext():
                with self.precision.autocast():
                    output = self.task.loss(self.replica, batch, state.step)
                clock.mark("forward")
                state.scaler.scale(output.loss / self.accumulation).backward()
                clock.mark(after_backward)
            state.meter.update(output, state.step)
        clip = self._clip_norm is not None
        grad_norm = self._gradient_norm() if measure_gradient or clip else None
        if grad_norm is not None and clip:
            self._clip(grad_norm)
        self._update()
        clock.mark("optimizer")
        return grad_norm

    def _gradient_norm(self) -> Tensor:
        self.state.scaler.unscale_(self.state.optimizer)
        grads = [p.grad for p in self.state.model.parameters() if p.grad is not None]
        return nn.utils.get_total_norm(grads)

    def _clip(self, grad_norm: Tensor) -> None:
        """Shorten the gradient to ``optim.clip_norm``; one that is not finite stays so."""
        assert self._clip_norm is not None
        parameters = list(self.state.model.parameters())
        nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, grad_norm)

    def _update(self) -> None:
        state, scaler = self.state, self.state.scaler
        # An optimizer that the scaler skips does not hear of an overflow, but the scale falls.
        # Reading it waits for the GPU, as the scaler's own decision to skip has done then.
        hears = getattr(state.optimizer, "_step_supports_amp_scaling", False)
        before = None if hears or not scaler.is_enabled() else scaler.get_scale()
        scaler.step(state.optimizer)
        scaler.update()
        if before is not None:
            state.meter.count_overflow(torch.tensor(scaler.get_scale() < before))
        state.optimizer.zero_grad(set_to_none=True)
        if state.average is not None:
            state.average.update()

    def _count_overflow(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Runs inside fused SGD's step, the only time when the scaler's verdict is there."""
        verdict = getattr(optimizer, "found_inf", None)
        if verdict is not None:
            self.state.meter.count_overflow(verdict)

    def _no_sync(self) -> AbstractContextManager[None]:
        """Leave gradients unreduced until the last micro-batch."""
        if isinstance(self.replica, DistributedDataParallel):
            return self.replica.no_sync()
        return nullcontext()
