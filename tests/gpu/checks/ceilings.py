"""What the card itself can do: all other times are judged by it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.device_time import device_seconds
from tests.gpu.report import Report, Setting

# A copy of one's own card reaches more of the data sheet's bandwidth; a shared one does not.
LEAST_COPY_SHARE = 0.75
PACKAGES = ("torch", "triton", "timm", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "hydra-core")


def run(setting: Setting, report: Report) -> None:
    report.figure("python", platform.python_version())
    for package in PACKAGES:
        report.figure(package, _version(package))
    copy = copy_rate(setting)
    report.speed("copy, TB/s", copy / 1e12)
    size = 64 if setting.small else 8192
    left, right = (
        torch.randn(size, size, device=setting.device, dtype=torch.bfloat16) for _ in range(2)
    )
    torch.mm(left, right)
    taken = device_seconds(lambda: torch.mm(left, right), 10)
    report.speed(f"{size}³ product in bf16, TFLOP/s", 2 * size**3 / taken / 1e12)
    if setting.on_gpu:
        properties = torch.cuda.get_device_properties(setting.device)
        report.figure("device", properties.name)
        report.figure("CUDA", torch.version.cuda)
        report.figure("cuDNN", torch.backends.cudnn.version())
        # Two transfers a clock; the clock is in kHz, the bus in bits.
        peak = 2e3 * properties.memory_clock_rate * properties.memory_bus_width / 8
        report.figure("bandwidth by its clock, TB/s", peak / 1e12)
        report.aim("copy ÷ bandwidth", copy / peak, least=LEAST_COPY_SHARE)


def copy_rate(setting: Setting) -> float:
    """Bytes per second that a large copy reads and writes."""
    source = torch.zeros((2**16 if setting.small else 2**30), device=setting.device).half()
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / device_seconds(lambda: target.copy_(source), 10)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
