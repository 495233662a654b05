"""Whole networks at the recipe's sizes, the trainer beside a bare loop, and what the GPU idles."""

from __future__ import annotations

import argparse
import gc

import torch

from benchmarks import model, scaling, train
from benchmarks.device_time import profile_kernels
from benchmarks.measure import seconds
from tests.gpu.report import Report, Setting

NETWORKS = {
    "resnet50": ("bn", "an", "gn", "se", "sn"),
    "mobilenetv2": ("bn", "an"),
    "densenet161": ("bn", "an"),
}
# SN's own recipe has 32 images on a GPU.
BATCH, SWITCHABLE_BATCH = 128, 32
LEAST_BUSY, LEAST_TRAINER, LEAST_OF_BOUND = 0.95, 0.97, 0.4


def run(setting: Setting, report: Report) -> None:
    networks = {"mobilenetv2": ("an",)} if setting.small else NETWORKS
    for arch, norms in networks.items():
        for norm in norms:
            one_network(arch, norm, setting, report)
            gc.collect()
            if setting.on_gpu:
                torch.cuda.empty_cache()
    beside_other_loops(setting, report)


def one_network(arch: str, norm: str, setting: Setting, report: Report) -> None:
    """Images per second, how long the GPU computes, launches and memory of a step."""
    batch = SWITCHABLE_BATCH if norm == "sn" else BATCH
    args = argparse.Namespace(
        dtype="fp16" if setting.on_gpu else "fp32",
        batch_size=2 if setting.small else batch,
        image_size=32 if setting.small else 224,
        contiguous=False,
    )
    model.set_backends(args.dtype)
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    step = model.training_step(arch, norm, args)
    for _ in range(1 if setting.small else 5):
        step()
    taken = seconds(step, 1 if setting.small else 20)
    kernels = profile_kernels(step, 1 if setting.small else 5)
    name = f"{arch}, {norm}"
    report.speed(f"{name}, img/s", args.batch_size / taken)
    report.figure(f"{name}, launches a step", kernels.launches)
    eager_loses = norm == "sn"  # thousands of small operations, see docs/scaling.md
    report.aim(f"{name}, GPU busy", kernels.total / taken, least=0 if eager_loses else LEAST_BUSY)
    if setting.on_gpu:
        report.figure(f"{name}, peak MiB", torch.cuda.max_memory_allocated() / 2**20)
        if "H100" in torch.cuda.get_device_name():
            bound = scaling.SLOWER.get((arch, norm), scaling.ROOFLINE[arch])
            share = args.batch_size / taken / bound
            report.aim(f"{name} ÷ bound", share, least=0 if eager_loses else LEAST_OF_BOUND)


def beside_other_loops(setting: Setting, report: Report) -> None:
    """The whole trainer on the same batch as a bare loop and a loop of timm's parts."""
    args = argparse.Namespace(
        arch="mobilenetv2" if setting.small else "resnet50",
        norm="bn",
        image_size=32 if setting.small else 224,
        batch_size=2 if setting.small else BATCH,
        steps=1 if setting.small else 20,
        repeats=1 if setting.small else 3,
    )
    result = train.run(args)
    for name, value in result["images_per_second"].items():
        report.speed(f"{name}, img/s", value)
    ratios = result["ratios"]
    report.aim("trainer ÷ bare loop", ratios["trainer ÷ bare loop"], least=LEAST_TRAINER)
    report.figure("trainer ÷ timm's parts", ratios["trainer ÷ timm's parts"])
