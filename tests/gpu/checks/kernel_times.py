"""What each of AN's kernels takes beside a copy, and whole layers beside batch norm's.

Inputs take turns, so that they come from memory and not from the cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attnorm.norms import AttentiveNorm2d
from attnorm.norms.group import keeps_channels_last
from benchmarks.device_time import Kernels, in_rotation, profile_kernels, rotated
from tests.gpu.checks.ceilings import copy_rate
from tests.gpu.report import Report, Setting

# C, H, K of ResNet-50's attentive sites.
SITES = ((64, 56, 10), (128, 28, 10), (256, 14, 20), (512, 7, 20))
# Passes over the activation that each kernel reads or writes.
LARGE = {"moments_kernel": 1, "apply_kernel": 2, "reduce_kernel": 2, "gradient_kernel": 3}
SMALL = ("head_kernel", "logits_backward_kernel", "head_backward_kernel")
# Of the copy's rate, where an activation is large enough to fill the card.
LEAST_SHARE, SMALLEST_SIDE = 0.75, 28
MOST_SMALL_MICROSECONDS = 20
# AN with ReLU inside ÷ batch norm and ReLU, forward and backward.
MOST_OF_BATCH_NORM = 0.9


def run(setting: Setting, report: Report) -> None:
    copy = copy_rate(setting)
    report.figure("copy, TB/s", copy / 1e12)
    report.figure("group norm keeps channels_last", keeps_channels_last(setting.device))
    for channels, side, components in SITES[:1] if setting.small else SITES:
        shape = (2, 8, 4, 4) if setting.small else (128, channels, side, side)
        by_kernel(shape, components, copy, setting, report)
        beside_batch_norm(shape, components, setting, report)


def by_kernel(
    shape: tuple[int, int, int, int], k: int, copy: float, setting: Setting, report: Report
) -> None:
    """Every kernel's time and its share of the copy's rate."""
    layer = AttentiveNorm2d(shape[1], k, activation="relu")
    kernels = both_ways(layer, shape, setting)
    if not setting.on_gpu:
        report.figure("kernels of a layer", kernels.launches)
        return
    place = f"{shape[1]}×{shape[2]}²"
    nbytes = 2 * shape[0] * shape[1] * shape[2] * shape[3]
    for name, passes in LARGE.items():
        taken = kernels.named(name)
        report.speed(f"{name} at {place}, µs", taken * 1e6)
        least = LEAST_SHARE if shape[2] >= SMALLEST_SIDE else 0.0
        share = passes * nbytes / taken / copy
        report.aim(f"{name} at {place} ÷ copy", share, least=least)
    small = sum(kernels.named(name) for name in SMALL) * 1e6
    report.speed(f"three small kernels at {place}, µs", small)
    report.aim(f"small kernels at {place}", small, most=MOST_SMALL_MICROSECONDS)


def beside_batch_norm(
    shape: tuple[int, int, int, int], k: int, setting: Setting, report: Report
) -> None:
    """All kernels of forward and backward."""
    layers = {
        "BN + ReLU": nn.Sequential(nn.BatchNorm2d(shape[1]), nn.ReLU(inplace=True)),
        "AN with ReLU": AttentiveNorm2d(shape[1], k, activation="relu"),
    }
    taken = {name: both_ways(layer, shape, setting).total for name, layer in layers.items()}
    for name, seconds in taken.items():
        report.speed(f"{name} at {shape[1]}×{shape[2]}², µs", seconds * 1e6)
    ratio = taken["AN with ReLU"] / taken["BN + ReLU"]
    most = MOST_OF_BATCH_NORM if shape[2] >= SMALLEST_SIDE else float("inf")
    report.aim(f"AN with ReLU ÷ BN + ReLU at {shape[1]}×{shape[2]}²", ratio, most=most)


def both_ways(module: nn.Module, shape: tuple[int, ...], setting: Setting) -> Kernels:
    """The kernels of forward and backward at the recipe's format and layout."""
    dtype = torch.float16 if setting.on_gpu else torch.float32
    module.to(setting.device)

    def made() -> tuple[Tensor, Tensor]:
        x = torch.randn(shape, device=setting.device, dtype=dtype)
        x = x.to(memory_format=torch.channels_last)
        return x.requires_grad_(), torch.randn_like(x)

    following = in_rotation(rotated(made, setting.device))
    call = _forward_backward(module, following)
    for _ in range(3):
        call()
    return profile_kernels(call, 2 if setting.small else 30)


def _forward_backward(
    module: nn.Module, following: Callable[[], tuple[Tensor, Tensor]]
) -> Callable[[], object]:
    parameters = list(module.parameters())

    def call() -> object:
        x, dy = following()
        return torch.autograd.grad(module(x), [x, *parameters], dy)

    return call
