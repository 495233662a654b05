"""Statistics of a batch that is spread over several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import (  # type: ignore[attr-defined]
    _resolve_process_group,
)


def group_by_name(name: str) -> dist.ProcessGroup:
    """The process group with this ``group_name`` (an operator's arguments can hold no group)."""
    return _resolve_process_group(name)  # type: ignore[arg-type, unused-ignore]


def merged_statistics(
    mean: Tensor, biased: Tensor, count: int, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (C) over all processes, and their number of values (1).

    Moments are merged about their common mean (Chan et al.), never as sums of squares, which
    cancel. One exchange of 2 C + 1 numbers; the processes' counts may differ.
    """
    own = torch.cat([mean, biased * count, mean.new_full((1,), count)])
    gathered = own.new_empty(dist.get_world_size(group) * own.numel())
    dist.all_gather_into_tensor(gathered, own, group=group)
    parts, c = gathered.view(-1, own.numel()), mean.numel()
    means, all_squares, counts = parts[:, :c], parts[:, c:-1], parts[:, -1:]
    total = counts.sum()
    merged = means[0] + ((means - means[0]) * counts).sum(0) / total
    merged_squares = (all_squares + counts * (means - merged).square()).sum(0)
    return merged, merged_squares / total, total.view(1)


def unbiased_variance(biased: Tensor, count: Tensor) -> Tensor:
    """From the biased one over ``count`` values; 0 of a single value."""
    return biased * (count / (count - 1).clamp(min=1))


def summed_over_processes(means: Tensor, count: int, group: dist.ProcessGroup) -> Tensor:
    """The processes' means over ``count`` values each, as means over the values of all.

    One exchange of 2 C + 1 numbers for ``means`` of (2, C).
    """
    sums = torch.cat([means.flatten() * count, means.new_full((1,), count)])
    dist.all_reduce(sums, group=group)
    return (sums[:-1] / sums[-1]).view_as(means)


class SharedStatistics(torch.autograd.Function):
    """Mean and biased variance (C) of each process to those of all and their number of values.

    Differentiable, once.
    """

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, var: Tensor, count: int, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor]:
        merged, biased, total = merged_statistics(mean, var, count, group)
        ctx.save_for_backward(mean - merged)
        ctx.mark_non_differentiable(total)
        ctx.count, ctx.group = count, group
        return merged, biased, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, mean_grad: Tensor, var_grad: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        (distance,) = ctx.saved_tensors
        # What the loss of every process says about the statistics they share.
        packed = torch.stack([mean_grad, var_grad]) / ctx.count
        mean_grad, var_grad = summed_over_processes(packed, ctx.count, ctx.group) * ctx.count
        return mean_grad + 2 * distance * var_grad, var_grad, None, None
