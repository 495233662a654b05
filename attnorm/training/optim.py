"""Which parameters decay, what updates them, and how the rate scales with the batch (§4.1)."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd as functional_sgd

from attnorm.config import Config, OptimConfig, SGDConfig, TimmOptimConfig, locate
from attnorm.errors import UserError
from attnorm.norms import is_normalizer


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    norm_weight_decay: bool,
    bias_weight_decay: bool = True,
) -> list[dict[str, object]]:
    """Groups that hold every trainable parameter exactly once: "weights", "norm" and "bias".

    "norm" holds what a normalizer owns directly: scales and offsets, an AN layer's [K, C] mixture
    included. Its attention head is made of ordinary layers and counts as weights. "bias" holds the
    biases of such layers, where they do not decay; else they are among the weights. A parameter
    that two modules share is filed where it is met first.
    """
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "norm": [], "bias": []}
    seen: set[int] = set()
    for module in model.modules():
        normalizes = is_normalizer(module)
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            alone = name == "bias" and not bias_weight_decay
            groups["norm" if normalizes else "bias" if alone else "weights"].append(parameter)
    decay = {
        "weights": weight_decay,
        "norm": weight_decay if norm_weight_decay else 0.0,
        "bias": 0.0,
    }
    return [
        {"name": name, "params": params, "weight_decay": decay[name]}
        for name, params in groups.items()
        if params
    ]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """What ``optim.factory`` makes of :func:`parameter_groups`.

    Raises:
        UserError: it cannot be imported, or does not take the options.
    """
    factory = locate(config.factory, "optim.factory")
    groups = parameter_groups(
        model, config.weight_decay, config.norm_weight_decay, config.bias_weight_decay
    )
    options = config.factory_options()
    try:
        optimizer: torch.optim.Optimizer = factory(groups, lr=config.lr, **options)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"optim.options={options} does not fit {config.factory}: {error}."
        ) from error
    return optimizer


def sgd(
    groups: Iterable[dict[str, Any]],
    lr: float,
    momentum: float,
    nesterov: bool,
    implementation: str,
) -> torch.optim.Optimizer:
    """SGD with one kernel for all parameters, or apex's FusedSGD.

    Raises:
        UserError: apex is asked for and cannot be had.
    """
    settings: dict[str, Any] = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
    if implementation == "apex":
        return _apex_optimizers().FusedSGD(groups, **settings)  # type: ignore[no-any-return]
    optimizer = FusedSGD(groups, **settings, fused=True)
    if momentum > 0:
        # Fused SGD would begin with uninitialized memory, and keep it where the loss scaler skips
        # the first step (torch 2.11 to 2.15). With zeros the first step is the same: 0 + gradient.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


class FusedSGD(torch.optim.SGD):
    """torch's fused SGD, as fast and as right for weights in channels_last on a CPU.

    torch's operator walks along the memory of parameter, gradient and momentum. Where one of them
    lies otherwise, as momentum can that another layout has saved, it pairs what does not belong
    together, and says nothing; and of each gradient that is not contiguous it first makes a copy
    that it does not use, half of its time in ResNet-50 (torch 2.15). Here what is not contiguous
    is handed over as the dense row of numbers that it is. GPUs have torch's step.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As :meth:`torch.optim.SGD.step`."""
        if any(not parameter.is_cpu for parameter in self.param_groups[0]["params"]):
            torchs: float | None = super().step(closure)
            return torchs
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            momenta: list[Tensor | None] = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                layout = _layout(parameter)
                parameters.append(_row(parameter, layout))
                gradients.append(_row(parameter.grad, layout))
                if group["momentum"] != 0:
                    state = self.state[parameter]
                    if layout is not None:
                        buffer = state["momentum_buffer"].contiguous(memory_format=layout)
                        state["momentum_buffer"] = buffer
                    momenta.append(_row(state["momentum_buffer"], layout))
            functional_sgd(
                parameters,
                gradients,
                momenta,
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                fused=True,
                grad_scale=getattr(self, "grad_scale", None),
                found_inf=getattr(self, "found_inf", None),
            )
        return loss


def _layout(parameter: Tensor) -> torch.memory_format | None:
    """How its numbers lie; None for neither."""
    if parameter.is_contiguous():
        return torch.contiguous_format
    last = parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else None


def _row(tensor: Tensor, layout: torch.memory_format | None) -> Tensor:
    """Its numbers as they lie in memory in that layout: a view, if it has the layout."""
    if layout is None:
        return tensor
    laid_out = tensor.contiguous(memory_format=layout)
    return laid_out.permute(0, 2, 3, 1).view(-1) if layout is torch.channels_last else laid_out


def from_timm(
    groups: Iterable[dict[str, Any]], lr: float, timm_name: str, **options: Any
) -> torch.optim.Optimizer:
    """An optimizer of timm's by its name there, on our groups (``timm.optim``).

    Weight decay is that of the groups: timm's own rule goes by dimensions, and an AN mixture has
    two. Options are those of the optimizer, such as ``betas`` or ``momentum``.
    """
    from timm.optim import create_optimizer_v2

    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        list(groups), opt=timm_name, lr=lr, **options
    )
    return optimizer


def check_optimizer(config: OptimConfig, device: torch.device) -> None:
    """Refuse what cannot be had before a run exists.

    Raises:
        UserError: the factory cannot be imported; timm has no such optimizer; apex is asked for
            and is not installed, or there is no GPU for it.
    """
    locate(config.factory, "optim.factory")
    if isinstance(config, TimmOptimConfig):
        from timm.optim import list_optimizers

        known = list_optimizers()
        if config.timm_name not in known:
            close = difflib.get_close_matches(config.timm_name, known, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else "timm.optim lists all."
            raise UserError(f"optim.timm_name={config.timm_name} is not of timm: {hint}")
    if isinstance(config, SGDConfig) and config.implementation == "apex":
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
    """``optim.lr`` scaled linearly from ``optim.reference_batch`` images to the global batch."""
    return config.lr * global_batch / config.reference_batch


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
