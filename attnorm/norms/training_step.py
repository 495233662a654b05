"""A layer's training step on a CPU in two calls of C: what Python and small tensors cost counts.

Between a network's layers the interpreter's own code leaves the caches, so that every operation of
torch costs some ten microseconds, and a small layer costs what its operations do. This step makes
nine tensors where :mod:`attnorm.norms.fused`, whose values it has, makes twenty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnorm.norms import fused, native

Parameters = tuple[Tensor, Tensor, Tensor, Tensor]


def training_step(x: Tensor, parameters: Parameters, options: native.StepOptions) -> Tensor | None:
    """y, normalized by the statistics of the batch; None where two calls of C cannot do it.

    Args:
        x: (N, C, H, W).
        parameters: γ and β (K, C), the head's weight (R, C) and bias (R), whose shapes fit.
        options: what autograd need not look at, in one argument.
    """
    passes = fused.native_passes_for(x, parameters, options)
    if passes is None or x.shape[1] != parameters[0].shape[1]:
        return None
    y: Tensor = _TrainingStep.apply(x, *parameters, passes, options)  # type: ignore[no-untyped-call]
    return y


class _TrainingStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        head_weight: Tensor,
        head_bias: Tensor,
        passes: native.NativePasses,
        options: native.StepOptions,
    ) -> Tensor:
        x = fused.dense(x)
        parameters = (weight, bias, head_weight, head_bias)
        y, small = passes.train_forward(x, parameters, options)
        ctx.save_for_backward(x, *parameters, small)
        ctx.passes, ctx.eps, ctx.activation = passes, options.eps, options.activation
        ctx.batch_statistics, ctx.group = True, ""
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, *parameters, small = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            inputs = (x, *parameters)
            found = fused.differentiable_gradients(ctx, dy, inputs, small, small)
            return (*found, None, None)
        dy, needs_dx = fused.laid_out_like(dy, x), ctx.needs_input_grad[0]
        gradients = ctx.passes.train_backward(
            dy, x, tuple(parameters), small, ctx.activation, needs_dx
        )
        return (*gradients, None, None)
