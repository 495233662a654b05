"""Steps in which nothing waits for the GPU, and the gradients of fp16 and bf16."""

from __future__ import annotations

import tempfile
import warnings
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from attnorm.models import create_model
from attnorm.training.backends import set_backends
from attnorm.training.precision import Precision
from tests.gpu.report import Report, Setting
from tests.gpu.runs import network, synthetic, trainer

LEAST_COSINE = {"fp16": 0.99, "bf16": 0.95}
# Of torch's warning; switching its mode on gives another one.
WAITED = "called a synchronizing CUDA operation"
# fp16 gradients vanish without it; any power of two is exact.
LOSS_SCALE = 1024.0


def run(setting: Setting, report: Report) -> None:
    for norm, average in product(("bn", "an"), ("null", "0.999")):
        waits = synchronizations(setting, norm, average)
        report.figure(f"waits in three steps, {norm}, ema.decay={average}", len(waits))
        report.require(not waits, f"{norm}, ema.decay={average} waits at {'; '.join(waits)}")
    gradients(setting, report)


def synchronizations(setting: Setting, norm: str, average: str) -> list[str]:
    """File and line of whatever waits for the GPU in three steps of the trainer."""
    overrides = [*network(setting), *synthetic(setting), f"norm={norm}", f"ema.decay={average}"]
    with tempfile.TemporaryDirectory() as folder, trainer(Path(folder), *overrides) as ours:
        batches = ours.train_loader.epoch(0)
        ours.train_step(batches, measure_gradient=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if setting.on_gpu:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                for _ in range(3):
                    ours.train_step(batches, measure_gradient=False)
            finally:
                if setting.on_gpu:
                    torch.cuda.set_sync_debug_mode("default")
    places = [f"{w.filename}:{w.lineno}" for w in caught if WAITED in str(w.message)]
    return sorted(set(places))


def gradients(setting: Setting, report: Report) -> None:
    """The direction of a whole network's gradient beside that in IEEE float32."""
    exact = gradient(setting, "fp32")
    for name, least in LEAST_COSINE.items():
        if name == "fp16" and not setting.on_gpu:
            continue
        cosine = float(F.cosine_similarity(gradient(setting, name), exact, dim=0))
        report.figure(f"cosine of gradients, {name}", cosine)
        if not setting.small:
            report.require(cosine > least, f"gradients in {name}: cosine {cosine:.4f}")


def gradient(setting: Setting, name: str) -> Tensor:
    """Of all parameters, as one vector."""
    set_backends(name)
    torch.manual_seed(0)
    options = {"timm_model": "test_resnet", "attentive_sites": r"layer(\d)\.\d+\.bn2"}
    arch, options = ("timm", options) if setting.small else ("resnet50", {})
    model = create_model(arch, norm="an", num_classes=10, **options).to(setting.device)
    model.to(memory_format=torch.channels_last)
    side, batch = (32, 4) if setting.small else (128, 32)
    images = torch.randn(batch, 3, side, side).to(setting.device)
    labels = torch.arange(batch, device=setting.device) % 10
    precision = Precision(name, setting.device.type)
    with precision.autocast():
        loss = F.cross_entropy(model(images), labels)
    (loss * LOSS_SCALE).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
