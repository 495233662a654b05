"""One of two processes of the check ``two_gpus``; torchrun starts it, rank 0 writes what they find.

python -m torch.distributed.run --nproc-per-node=2 -m tests.gpu.pair OUT cuda|cpu [small]
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attnorm import distributed
from attnorm.distributed import Process
from attnorm.files import write_json
from attnorm.models.sync_bn import synchronize
from attnorm.norms import AttentiveNorm2d
from attnorm.training.backends import set_backends
from tests.gpu.report import Setting
from tests.gpu.runs import network, synthetic, trainer


def main(out: Path, setting: Setting) -> None:
    process = distributed.current_process(setting.device.type)
    with distributed.process_group(process, timeout_minutes=2):
        share, contexts = after_a_checkpoint(setting, process)
        error = shared_statistics(process)
        everywhere = distributed.gather_objects((share, contexts, error))
        if process.is_main:
            write_json(
                out,
                {
                    "communication": max(share for share, _, _ in everywhere),
                    "foreign contexts": [contexts for _, contexts, _ in everywhere],
                    "sync_bn": max(error for _, _, error in everywhere),
                },
            )


def after_a_checkpoint(setting: Setting, process: Process) -> tuple[float, list[int]]:
    """The share of communication in a few steps, and the other GPUs that this process is on."""
    overrides = [*network(setting), *synthetic(setting), "norm=an"]
    with tempfile.TemporaryDirectory() as folder, trainer(Path(folder), *overrides) as ours:
        batches = ours.train_loader.epoch(0)
        for _ in range(2):
            ours.train_step(batches, measure_gradient=False)
        ours.state.meter.restart_clock()
        for _ in range(2 if setting.small else 10):
            ours.train_step(batches, measure_gradient=False)
        share = ours.state.meter.read().shares["communication"]
        ours.save()
        ours.checkpoints.finish()
    if not setting.on_gpu:
        return share, []
    others = set(range(torch.cuda.device_count())) - {process.local_rank}
    return share, [other for other in sorted(others) if torch._C._cuda_hasPrimaryContext(other)]


def shared_statistics(process: Process) -> float:
    """Gradients of two halves with shared statistics beside those of the whole, by norms."""
    set_backends("fp32")
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), AttentiveNorm2d(16, 4), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16))
    whole = nn.Sequential(*layers).to(process.device)
    images = torch.randn(8, 3, 12, 12, device=process.device)
    halves = synchronize(copy.deepcopy(whole), process.device)
    on_gpu = process.device.type == "cuda"
    replica = DistributedDataParallel(halves, [process.device] if on_gpu else None)
    expected = _gradient(whole, whole, images)
    found = _gradient(replica, halves, images.chunk(2)[process.rank])
    return float((found - expected).norm() / expected.norm())


def _gradient(function: nn.Module, model: nn.Module, images: Tensor) -> Tensor:
    y = function(images)
    # Weighed by place, because the mean of squares of what batch norm makes is 1.
    weights = torch.linspace(0, 1, y[0].numel(), device=y.device).view_as(y[0])
    (y.square() * weights).mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


if __name__ == "__main__":
    small = "small" in sys.argv[3:]
    main(Path(sys.argv[1]), Setting(torch.device(sys.argv[2]), small))
