"""The paper's optimizer and learning rate (§4.1): SGD, linear scaling, cosine by iteration."""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import torch
from torch import nn

from attnorm.config import Config, OptimConfig, ScheduleConfig
from attnorm.errors import UserError
from attnorm.norms import Normalization

REFERENCE_BATCH = 512  # the paper's 4 GPUs × 128 images, for which optim.lr is given

NORMALIZERS = (
    Normalization,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
)


def parameter_groups(
    model: nn.Module, weight_decay: float, norm_weight_decay: bool
) -> list[dict[str, object]]:
    """Two groups, "weights" and "norm", that hold every trainable parameter exactly once.

    "norm" holds what a normalizer owns directly: scales and offsets, an AN layer's [K, C] mixture
    included. Its attention head is made of ordinary layers and counts as weights. A parameter that
    two modules share is filed where it is met first.
    """
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "norm": []}
    seen: set[int] = set()
    for module in model.modules():
        group = groups["norm" if isinstance(module, NORMALIZERS) else "weights"]
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                group.append(parameter)
    decay = {"weights": weight_decay, "norm": weight_decay if norm_weight_decay else 0.0}
    return [
        {"name": name, "params": params, "weight_decay": decay[name]}
        for name, params in groups.items()
        if params
    ]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD over :func:`parameter_groups`; one kernel for all parameters, or apex's FusedSGD.

    Raises:
        UserError: apex is asked for and cannot be had.
    """
    groups = parameter_groups(model, config.weight_decay, config.norm_weight_decay)
    settings: dict[str, Any] = {
        "lr": config.lr,
        "momentum": config.momentum,
        "nesterov": config.nesterov,
    }
    if config.implementation == "apex":
        return _apex_optimizers().FusedSGD(groups, **settings)  # type: ignore[no-any-return]
    optimizer = torch.optim.SGD(groups, **settings, fused=True)
    if config.momentum > 0:
        # Fused SGD would begin with uninitialized memory, and keep it where the loss scaler skips
        # the first step (torch 2.11 to 2.15). With zeros the first step is the same: 0 + gradient.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def check_implementation(config: OptimConfig, device: torch.device) -> None:
    """Refuse ``optim.implementation`` before a run exists.

    Raises:
        UserError: apex is asked for and is not installed, or there is no GPU for it.
    """
    if config.implementation == "apex":
        if device.type != "cuda":
            raise UserError(
                "optim.implementation=apex needs a GPU: use optim.implementation=torch."
            )
        _apex_optimizers()


def _apex_optimizers() -> ModuleType:
    try:
        return importlib.import_module("apex.optimizers")
    except ImportError as error:
        raise UserError(
            f"optim.implementation=apex, but apex cannot be imported ({error}): build it from"
            " https://github.com/NVIDIA/apex with --cuda_ext, or use optim.implementation=torch."
        ) from error


def base_learning_rate(config: OptimConfig, global_batch: int) -> float:
    """``optim.lr`` scaled linearly from 512 images to the global batch."""
    return config.lr * global_batch / REFERENCE_BATCH


def learning_rate(
    config: ScheduleConfig, base: float, step: int, total_steps: int, steps_per_epoch: int
) -> float:
    """The learning rate of iteration ``step`` (counted from 0).

    Linear warmup reaches ``base`` at its end; the cosine then falls from ``base`` to ``final_lr``,
    which it would reach at ``total_steps``.
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return config.final_lr + (base - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def steps_per_epoch(batches: int, config: Config) -> int:
    """Optimizer steps in an epoch of ``batches``; batches that do not fill a step are left out.

    Raises:
        UserError: they fill none.
    """
    if batches < config.grad_accumulation:
        raise UserError(
            f"grad_accumulation={config.grad_accumulation} needs more batches than an epoch has"
            f" ({batches}): lower it, or batch_size={config.batch_size}."
        )
    return batches // config.grad_accumulation


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value
