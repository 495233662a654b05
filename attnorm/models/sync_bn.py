"""Batch statistics over all processes, for every normalizer of a network that has any."""

from __future__ import annotations

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from attnorm.errors import UserError
from attnorm.norms import AttentiveNorm2d
from attnorm.norms.ghost import GhostBatchNorm2d
from attnorm.norms.statistics import SharedStatistics, unbiased_variance


def synchronize(model: nn.Module, device: torch.device) -> nn.Module:
    """Let batch norms and AttentiveNorm2d share their training statistics between all processes.

    On a GPU plain batch norms become ``nn.SyncBatchNorm``, in whose forward pass the processor
    waits for the GPU (it leaves out processes without images; AttentiveNorm2d waits nowhere). On a
    CPU, for which torch has none, they compute the same with gloo. GN, LN and IN have nothing to
    share; SwitchNorm2d keeps its own, as its authors ran it.

    Raises:
        RuntimeError: there is no process group yet.
        UserError: the model has ghost batch norms.
    """
    for module in model.modules():
        if isinstance(module, GhostBatchNorm2d):
            raise UserError(
                "train.sync_bn=true and ghost batch norm exclude each other: one takes statistics"
                " over more images than a process has, the other over fewer."
            )
        if isinstance(module, AttentiveNorm2d):
            module.synchronize()
        elif device.type == "cpu" and type(module) in _SHARED:
            module.__class__ = _SHARED[type(module)]
    if device.type == "cuda":
        converted: nn.Module = convert_sync_batchnorm(model)
        return converted
    return model


class SharedBatchNorm2d(nn.BatchNorm2d):
    """``nn.SyncBatchNorm`` for CPUs: input and output are (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize by the statistics of all processes' batches (in evaluation, running ones)."""
        return _shared_batch_norm(self, x) if self.training else super().forward(x)


class SharedBatchNormAct2d(BatchNormAct2d):  # type: ignore[misc]
    """The same with timm's dropout and activation behind it."""

    def forward(self, x: Tensor) -> Tensor:
        """See :class:`SharedBatchNorm2d`."""
        y = _shared_batch_norm(self, x) if self.training else nn.BatchNorm2d.forward(self, x)
        activated: Tensor = self.act(self.drop(y))
        return activated


_SHARED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: SharedBatchNorm2d,
    BatchNormAct2d: SharedBatchNormAct2d,
}


def _shared_batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    group = dist.group.WORLD
    if group is None:
        raise RuntimeError("synchronized batch norm needs torch.distributed.init_process_group()")
    own_var, own_mean = torch.var_mean(x, (0, 2, 3), correction=0)
    count = x.numel() // x.shape[1]
    mean, var, total = SharedStatistics.apply(own_mean, own_var, count, group)
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        momentum = norm.momentum
        if momentum is None:  # equal weight for every batch so far
            momentum = 1.0 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(unbiased_variance(var, total), momentum)
    scale = norm.weight * torch.rsqrt(var + norm.eps)
    offset = norm.bias - mean * scale
    y: Tensor = x * scale[:, None, None] + offset[:, None, None]
    return y
