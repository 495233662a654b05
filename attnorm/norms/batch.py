"""Batch normalization's training step on a CPU, by the passes of :mod:`attnorm.norms.native`.

torch has the same in separate passes, and the backward pass of its ReLU6 alone takes as long as the
normalization (18 % of a step of MobileNet-v2): here the activation costs no pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attnorm.norms import fused, native
from attnorm.norms.passes import ACTIVATIONS, activated_


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d``, and an activation: (N, C, H, W) to the same, in dtype and memory format.

    Training on a CPU runs in the compiled passes, whose values are torch's up to rounding; all else
    (evaluation, GPUs, tracing, machines without a C compiler) runs torch's own operations.

    Args:
        num_features: C.
        eps: Added to the variance.
        momentum: Weight of the newest batch in the running statistics; None for the mean over all.
        activation: None, ``"relu"`` or ``"relu6"``.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    # For torch's own layers that become one of these (models/cpu/activations.py).
    activation: str | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, device=device, dtype=dtype)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Normalize by the statistics of the batch (in evaluation, running ones)."""
        activation = ACTIVATIONS[self.activation]
        done = batch_training_step(self, x, activation) if self.training else None
        return activated_(super().forward(x), activation) if done is None else done


def batch_training_step(norm: nn.BatchNorm2d, x: Tensor, activation: int) -> Tensor | None:
    """y of a training step, whose running statistics have moved; None where the passes cannot."""
    if norm.momentum is None or x.dim() != 4 or x.shape[1] != norm.num_features:
        return None
    parameters, running = (norm.weight, norm.bias), (norm.running_mean, norm.running_var)
    options = native.StepOptions(
        running,  # type: ignore[arg-type]
        norm.num_batches_tracked,
        norm.momentum,
        norm.eps,
        activation,
    )
    passes = fused.native_passes_for(x, parameters, options)
    if passes is None or x.numel() == x.shape[1]:
        return None
    y: Tensor = _BatchTrainingStep.apply(x, *parameters, passes, options)  # type: ignore[no-untyped-call]
    return y


class _BatchTrainingStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        passes: native.NativePasses,
        options: native.StepOptions,
    ) -> Tensor:
        x = fused.dense(x)
        y, small = passes.batch_forward(x, (weight, bias), options)
        ctx.save_for_backward(x, weight, bias, small)
        ctx.passes, ctx.eps, ctx.activation = passes, options.eps, options.activation
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight, bias, small = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            y = functional.batch_norm(x, None, None, weight, bias, training=True, eps=ctx.eps)
            y = activated_(y, ctx.activation)
            return (*fused.wanted_gradients(ctx, y, (x, weight, bias), dy), None, None)
        dy, needs_dx = fused.laid_out_like(dy, x), ctx.needs_input_grad[0]
        gradients = ctx.passes.batch_backward(
            dy, x, (weight, bias), small, ctx.activation, needs_dx
        )
        return (*gradients, None, None)
