"""A process group of one: both backends, what processes agree on, DDP with shared statistics."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from attnorm import distributed
from attnorm.distributed.group import join
from attnorm.models.sync_bn import synchronize
from attnorm.norms import AttentiveNorm2d
from tests.gpu.report import Report, Setting


def run(setting: Setting, report: Report) -> None:
    process = distributed.Process(0, 0, 1, torch.device(setting.device.type, 0))
    if setting.on_gpu:
        torch.cuda.set_device(process.device)
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        join(process, store, 0, 1, timedelta(minutes=1))
        try:
            report.figure("backends", str(dist.get_backend_config()))
            report.require(distributed.agree(5) == 5, "agree() gives another number")
            distributed.barrier()
            report.require(distributed.gather_objects("x") == ["x"], "gather_objects()")
            one_step(process, report)
        finally:
            dist.destroy_process_group()


def one_step(process: distributed.Process, report: Report) -> None:
    """Forward and backward through DDP, AN and batch norm with shared statistics."""
    layers = (nn.Conv2d(3, 8, 3), AttentiveNorm2d(8, 4), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    model = synchronize(nn.Sequential(*layers), process.device).to(process.device)
    # A group of one has nothing to share, and synchronize() leaves AN alone: exchange all the same.
    group = dist.group.WORLD
    assert group is not None
    model[1].group_name = group.group_name
    on_gpu = process.device.type == "cuda"
    replica = DistributedDataParallel(
        model,
        device_ids=[process.device] if on_gpu else None,
        gradient_as_bucket_view=True,
        broadcast_buffers=False,
    )
    replica(torch.randn(4, 3, 9, 9, device=process.device)).square().mean().backward()
    distributed.broadcast_buffers(model)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    report.figure("gradients", len(gradients))
    finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
    report.require(finite, "a gradient is not finite")
    report.require(len(gradients) == len(list(model.parameters())), "a gradient is missing")
