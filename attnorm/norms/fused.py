"""Attentive over Batch Normalization as one operator with the passes over memory of BN alone.

Per instance and channel, mean and variance over H, W give the statistics of the batch *and* the
attention head's input, so x is read once for both; backward needs three sums per instance and
channel, which one pass over dy and x gives. Only x and tensors of at most N x R or C are saved.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from attnorm.norms import native
from attnorm.norms.passes import Activation, Passes, PlainPasses, activated_, statistics_dtype
from attnorm.norms.reference import attentive_affine
from attnorm.norms.statistics import (
    group_by_name,
    merged_statistics,
    summed_over_processes,
    unbiased_variance,
)

log = logging.getLogger(__name__)

_PLAIN = PlainPasses()
# Overrides the choice of passes: "plain" operations everywhere, or "triton" on a CPU (interpreted).
KERNELS = os.environ.get("ATTNORM_KERNELS", "")


def attentive_batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: int = Activation.NONE,
    group_name: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """Paper, equations 1, 6 and 7 with the head of Figure 3, and an activation after them.

    Args:
        x: (N, C, H, W), any float dtype; contiguous and channels_last inputs are not copied.
        weight: γ, (K, C).
        bias: β, (K, C).
        head_weight: (R, C). R is K, or 2 K: then the first K mixture coefficients weigh γ, the
            last K weigh β.
        head_bias: (R).
        running_mean: (C). With it and ``running_var`` x is normalized by these (evaluation);
            without, by the statistics of the batch (training).
        running_var: (C), unbiased or not: it is used as given.
        eps: Added to the variance.
        activation: One of :class:`~attnorm.norms.passes.Activation`.
        group_name: The process group whose processes share the statistics of the batch.

    Returns:
        y, like x; mean (C) and unbiased variance (C) of the batch (without gradient).
    """
    parameters = (weight, bias, head_weight, head_bias)
    function = _Function.apply if runs_now(x) else torch.ops.attnorm.attentive_norm
    y, _, mean, var, _ = function(
        x, *parameters, running_mean, running_var, eps, activation, group_name
    )
    return y, mean, var


def runs_now(x: Tensor) -> bool:
    """Whether x is an ordinary tensor, rather than one that something traces or counts with."""
    return type(x) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    activation: int,
    group_name: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, λ, centre, unbiased variance, rstd."""
    _check_shapes(x, weight, bias, head_weight, head_bias)
    passes = passes_for(x)
    with _surroundings(x, passes):
        x = dense(x)
        weight, bias, head_weight, head_bias = _promoted(x, weight, bias, head_weight, head_bias)
        mixture, affine, centre, unbiased, rstd = passes.prepare(
            x, weight, bias, head_weight, head_bias, eps
        )
        if running_mean is not None and running_var is not None:
            # An operator's results may not share memory with its arguments.
            centre = running_mean.to(centre.dtype, copy=True)
            rstd = torch.rsqrt(running_var.to(rstd.dtype) + eps)
        elif group_name:
            group, count = group_by_name(group_name), x.numel() // x.shape[1]
            biased = unbiased * ((count - 1) / count)
            centre, biased, total = merged_statistics(centre, biased, count, group)
            unbiased, rstd = unbiased_variance(biased, total), torch.rsqrt(biased + eps)
        y = passes.apply(x, affine, centre, rstd, activation)
        return y, mixture, centre, unbiased, rstd


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    activation: int,
    group_name: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    c, dtype = x.shape[1], statistics_dtype(x)
    mixture = x.new_empty(x.shape[0], head_weight.shape[0], dtype=dtype)
    centre, rstd = x.new_empty(c, dtype=dtype), x.new_empty(c, dtype=dtype)
    unbiased = x.new_empty(c, dtype=dtype)
    return torch.empty_like(dense(x)), mixture, centre, unbiased, rstd


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    head_weight: Tensor,
    mixture: Tensor,
    centre: Tensor,
    rstd: Tensor,
    batch_statistics: bool,
    activation: int,
    group_name: str,
    needs_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (empty unless needed), weight, bias, head_weight and head_bias."""
    passes = passes_for(x)
    with _surroundings(x, passes):
        x = dense(x)
        dy = laid_out_like(dy, x)
        promoted = _promoted(x, weight, bias, head_weight)
        found = passes.collect(
            dy, x, mixture, promoted[0], promoted[1], promoted[2], centre, rstd, activation
        )
        folded = found.folded
        if not batch_statistics:
            folded = torch.zeros_like(folded)
        elif group_name:
            count = x.numel() // x.shape[1]
            folded = summed_over_processes(folded, count, group_by_name(group_name))
        dx = x.new_empty(0)
        if needs_dx:
            small = (found.affine, centre, rstd, found.mean_grad, folded)
            dx = passes.gradient(dy, x, *small, activation)
        return (
            dx,
            found.weight_grad.to(weight.dtype),
            found.bias_grad.to(bias.dtype),
            found.head_weight_grad.to(head_weight.dtype),
            found.head_bias_grad.to(head_weight.dtype),
        )


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    head_weight: Tensor,
    mixture: Tensor,
    centre: Tensor,
    rstd: Tensor,
    batch_statistics: bool,
    activation: int,
    group_name: str,
    needs_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(dense(x)) if needs_dx else x.new_empty(0),
        weight.new_empty(weight.shape),
        bias.new_empty(bias.shape),
        head_weight.new_empty(head_weight.shape),
        head_weight.new_empty(head_weight.shape[0]),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, head_weight, head_bias, running_mean, _, ctx.eps, ctx.activation, ctx.group = (
        inputs
    )
    _, mixture, centre, unbiased, rstd = output
    ctx.batch_statistics = running_mean is None
    ctx.mark_non_differentiable(mixture, centre, unbiased, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, head_weight, head_bias, mixture, centre, rstd)


def _gradients(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 5
    if dy is None:
        return (*nothing, *nothing)
    x, weight, bias, head_weight, head_bias, mixture, centre, rstd = ctx.saved_tensors
    if torch.is_grad_enabled():
        inputs = (x, weight, bias, head_weight, head_bias)
        return (*differentiable_gradients(ctx, dy, inputs, centre, rstd), *nothing)
    function = _backward if runs_now(x) else torch.ops.attnorm.attentive_norm_backward
    dx, *others = function(
        dy,
        x,
        weight,
        bias,
        head_weight,
        mixture,
        centre,
        rstd,
        ctx.batch_statistics,
        ctx.activation,
        ctx.group,
        ctx.needs_input_grad[0],
    )
    return (dx if ctx.needs_input_grad[0] else None, *others, *nothing)


def differentiable_gradients(
    ctx: Any, dy: Tensor, inputs: tuple[Tensor, ...], centre: Tensor, rstd: Tensor
) -> list[Tensor | None]:
    """Gradients that can be differentiated again (``create_graph=True``), through Figure 3."""
    if ctx.group:
        raise RuntimeError("Attentive Normalization over processes has no second derivative")
    x, weight, bias, head_weight, head_bias = inputs
    wide = x.to(centre.dtype)
    mean = wide.mean((2, 3))
    if ctx.batch_statistics:
        # Written out, because batch_norm's own second derivative wants an affine weight.
        var, centre = torch.var_mean(wide, (0, 2, 3), correction=0)
        rstd = torch.rsqrt(var + ctx.eps)
    normalized = (wide - centre[:, None, None]) * rstd[:, None, None]
    parameters = _promoted(x, weight, bias, head_weight, head_bias)
    mixture = torch.sigmoid(torch.nn.functional.linear(mean, parameters[2], parameters[3]))
    y = attentive_affine(normalized, mixture, parameters[0], parameters[1]).to(x.dtype)
    return wanted_gradients(ctx, activated_(y, ctx.activation), inputs, dy)


def wanted_gradients(
    ctx: Any, y: Tensor, inputs: tuple[Tensor, ...], dy: Tensor
) -> list[Tensor | None]:
    """Of the inputs that need one, in a graph of their own; None for the others."""
    wanted = [i for i in range(len(inputs)) if ctx.needs_input_grad[i]]
    found = torch.autograd.grad(y, [inputs[i] for i in wanted], dy, create_graph=True)
    gradients: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, found, strict=True):
        gradients[i] = gradient
    return gradients


class _Function(torch.autograd.Function):
    """The operator without the dispatcher, which costs as much time as a small layer on a CPU."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        output = _forward(*arguments)
        _setup_context(ctx, arguments, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, *grads)


_OPERATOR = torch.library.custom_op(
    "attnorm::attentive_norm",
    _forward,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor head_weight, Tensor head_bias, "
    "Tensor? running_mean, Tensor? running_var, float eps, int activation, str group_name) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_OPERATOR.register_fake(_forward_fake)
_OPERATOR.register_autograd(_gradients, setup_context=_setup_context)

_BACKWARD_OPERATOR = torch.library.custom_op(
    "attnorm::attentive_norm_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor dy, Tensor x, Tensor weight, Tensor bias, Tensor head_weight, Tensor mixture, "
    "Tensor centre, Tensor rstd, bool batch_statistics, int activation, str group_name, "
    "bool needs_dx) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_BACKWARD_OPERATOR.register_fake(_backward_fake)


def _check_shapes(
    x: Tensor, weight: Tensor, bias: Tensor, head_weight: Tensor, head_bias: Tensor
) -> None:
    """Compiled passes read memory by these shapes, so they must be right."""
    (k, c), rows = weight.shape, head_weight.shape[0]
    if x.dim() != 4 or x.shape[1] != c:
        raise ValueError(f"expected an input of (N, {c}, H, W), got {tuple(x.shape)}")
    if bias.shape != (k, c) or head_weight.shape[1] != c or head_bias.shape != (rows,):
        raise ValueError("weight, bias and head disagree on the number of channels or components")
    if rows not in (k, 2 * k):
        raise ValueError(f"the head has {rows} outputs for {k} components, not {k} or {2 * k}")


def passes_for(x: Tensor) -> Passes:
    """The fastest passes there are for x. ``ATTNORM_KERNELS=plain|triton`` overrides the choice."""
    passes = _native(x)
    if passes is not None:
        return passes
    if KERNELS == "plain" or x.dtype == torch.float64 or x.numel() == 0:
        return _PLAIN
    if x.is_cuda or KERNELS == "triton":
        return _triton() or _PLAIN
    return _PLAIN


def native_passes_for(
    x: Tensor, parameters: Iterable[Tensor], options: native.StepOptions
) -> native.NativePasses | None:
    """The passes in C, if they are x's now and can make a training step with these tensors."""
    passes = _native(x) if runs_now(x) else None
    if passes is None:
        return None
    for tensor in (*parameters, *(options.running or ())):
        if tensor is None or tensor.dtype is not torch.float32:
            return None
        if not tensor.is_contiguous() or not tensor.is_cpu:
            return None
    batches = options.batches
    if batches is not None and (batches.dtype is not torch.int64 or not batches.is_cpu):
        return None
    return passes


def _native(x: Tensor) -> native.NativePasses | None:
    if KERNELS in ("plain", "triton") or not x.is_cpu or x.numel() == 0:
        return None
    dtype = x.dtype
    if dtype is not torch.float32 and dtype is not torch.bfloat16:
        return None
    return native.load(dtype)


@cache
def _triton() -> Passes | None:
    try:
        from attnorm.norms.triton_passes import TritonPasses
    except ImportError as error:
        log.warning("Attentive Normalization runs on plain torch operations: %s", error)
        return None
    return TritonPasses()


def _surroundings(x: Tensor, passes: Passes) -> AbstractContextManager[Any]:
    """No autocast where it would change something, and launches go to the GPU that holds x.

    Every context that is entered delays a layer's launches, so none is without need.
    """
    if passes.ignores_autocast:
        here = not x.is_cuda or torch.cuda.current_device() == x.device.index
        return nullcontext() if here else torch.cuda.device(x.device)
    return _disabled_autocast(x.device.type)


def _disabled_autocast(device_type: str) -> AbstractContextManager[Any]:
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def dense(x: Tensor) -> Tensor:
    """x itself if contiguous or channels_last, else a copy that is the one it resembles more."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    last = x.stride(1) == 1 and x.shape[1] > 1
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def laid_out_like(dy: Tensor, x: Tensor) -> Tensor:
    if dy.stride() == x.stride() and dy.dtype == x.dtype:
        return dy
    last = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return dy.contiguous(memory_format=last).to(x.dtype)


def _promoted(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    dtype = statistics_dtype(x)
    if all(parameter.dtype == dtype and parameter.is_contiguous() for parameter in parameters):
        return parameters
    return tuple(parameter.to(dtype).contiguous() for parameter in parameters)
