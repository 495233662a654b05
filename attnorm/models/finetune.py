"""Freezing a pretrained network's normalizers for fine-tuning on small batches (paper, §4.2)."""

from __future__ import annotations

from typing import Any

from torch import nn

from attnorm.errors import UserError
from attnorm.models.sites import match_sites
from attnorm.norms import AttentiveNorm2d, is_normalizer


def freeze_for_finetuning(model: nn.Module, sites: str | None = None) -> nn.Module:
    """Freeze γ, β and running statistics everywhere, and the attention heads of the first stage.

    The other heads go on learning, as in the paper's detection experiments (§4.2). Frozen layers
    normalize by their running statistics in training too, whatever ``model.train()`` says. Call
    it before building the optimizer; calling it twice changes nothing.

    Args:
        model: A network with AN, or with other normalizers alone; changed in place.
        sites: Pattern for the whole names of its AN layers, group 1 being the stage. Without it
            the stages are those that ``create_model`` or ``convert`` placed them by.

    Returns:
        The same model.

    Raises:
        UserError: ``sites`` matches something else, or no first stage can be told from the rest.
    """
    stages = _attentive_stages(model, sites)
    heads = {id(module) for layer in stages for module in layer.attention.modules()}
    for module in model.modules():
        if not is_normalizer(module):
            continue
        if id(module) not in heads:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        if getattr(module, "running_mean", None) is not None and not _is_frozen(module):
            module.register_forward_pre_hook(_use_running_statistics)
    for layer, stage in stages.items():
        if stage == 0:
            layer.attention.requires_grad_(False)
    return model


def _attentive_stages(model: nn.Module, sites: str | None) -> dict[AttentiveNorm2d, int]:
    """The stage of every AN layer, counted from 0."""
    layers = [module for module in model.modules() if isinstance(module, AttentiveNorm2d)]
    if sites is not None:
        stages = {}
        for site in match_sites(model, sites, "sites"):
            module = model.get_submodule(site.name)
            if not isinstance(module, AttentiveNorm2d):
                raise UserError(
                    f"sites={sites} matches {site.name!r}, a {type(module).__name__}, "
                    "which is not an AttentiveNorm2d."
                )
            stages[module] = site.stage
        return {layer: stages.get(layer, -1) for layer in layers}
    placed = {layer: getattr(layer, "stage", None) for layer in layers}
    if layers and (None in placed.values() or len(set(placed.values())) == 1):
        raise UserError(
            "The stages of this model's AttentiveNorm2d layers are not known: "
            "pass sites=PATTERN, whose group 1 is the stage."
        )
    return {layer: int(stage) for layer, stage in placed.items() if stage is not None}


def _use_running_statistics(module: nn.Module, _: Any) -> None:
    module.training = False


def _is_frozen(module: nn.Module) -> bool:
    return _use_running_statistics in module._forward_pre_hooks.values()
