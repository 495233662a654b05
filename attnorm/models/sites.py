"""Where normalizers sit in a network, and swapping them there.

Everything here works on any ``nn.Module``; which names to look for is the caller's business.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from attnorm.errors import UserError
from attnorm.norms import Normalization, mark_as_normalizer

# Activations that these blocks call right after the normalizer; module order alone does not say
# so (BasicBlock registers act2 after bn2 but adds the shortcut in between).
_ACTIVATION_AFTER: dict[type[nn.Module], dict[str, str]] = {
    ResNet: {"bn1": "act1"},
    BasicBlock: {"bn1": "act1"},
    Bottleneck: {"bn1": "act1", "bn2": "act2"},
}


@dataclass(frozen=True)
class Site:
    """A place in a network: the module's dotted name, and its stage counted from 0."""

    name: str
    stage: int


def match_sites(model: nn.Module, pattern: str, key: str) -> list[Site]:
    """Modules whose whole name matches ``pattern``; group 1, if any, is the stage.

    Stages are numbered in order of appearance. ``key`` names the pattern in error messages.

    Raises:
        UserError: not a regular expression, or no module matches.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{key}={pattern} is not a regular expression: {error}.") from error
    sites: list[Site] = []
    stages: dict[str | None, int] = {}
    for name, _ in model.named_modules(remove_duplicate=False):
        match = expression.fullmatch(name)
        if match:
            stage = match.group(1) if expression.groups else None
            sites.append(Site(name, stages.setdefault(stage, len(stages))))
    if not sites:
        raise UserError(
            f"{key}={pattern} matches no module of {type(model).__name__}.\n"
            f"A pattern must match a whole name; {_describe_batch_norms(model)}."
        )
    return sites


def match_batch_norms(model: nn.Module, pattern: str | None, key: str) -> list[Site]:
    """Like :func:`match_sites`, for 2-D batch norms alone; every one of them without a pattern.

    Raises:
        UserError: nothing matches, or something that is not a 2-D batch norm does.
    """
    if pattern is None:
        names = _batch_norm_names(model)
        if not names:
            raise UserError(f"{type(model).__name__} has no 2-D batch norm to replace.")
        return [Site(name, 0) for name in names]
    sites = match_sites(model, pattern, key)
    for site in sites:
        module = model.get_submodule(site.name)
        if not isinstance(module, nn.BatchNorm2d):
            raise UserError(
                f"{key}={pattern} matches {site.name!r}, a {type(module).__name__}, "
                f"which is not a 2-D batch norm; {_describe_batch_norms(model)}."
            )
    return sites


def components_by_site(sites: Sequence[Site], counts: int | list[int], key: str) -> list[int]:
    """K of each site: one integer for all of them, or a list with one integer per stage.

    Raises:
        UserError: the list's length is not the number of stages.
    """
    if isinstance(counts, int):
        return [counts] * len(sites)
    stages = max(site.stage for site in sites) + 1
    if len(counts) != stages:
        raise UserError(
            f"{key}={counts} has {len(counts)} numbers, but the sites have {stages} stage(s) "
            "(group 1 of the pattern): give one per stage, or one integer for all."
        )
    return [counts[site.stage] for site in sites]


def replace_batch_norms(
    model: nn.Module, sites: Sequence[Site], layers: Sequence[partial[nn.Module]]
) -> nn.Module:
    """Put ``layers[i](num_features, ...)`` where ``sites[i]`` is; returns the model, changed.

    A layer inherits the batch norm's eps and momentum (unless its partial sets them), device,
    dtype, mode, and every parameter and buffer of the same name and shape. A ReLU that directly
    follows is fused into a layer that offers ``activation="relu"``, and goes where timm's layer has
    an activation of its own (``apply_act``). What is put here counts as a normalizer. A model that
    is itself a batch norm is returned replaced.
    """
    old_modules = [model.get_submodule(site.name) for site in sites]
    uses = Counter(id(old) for old in old_modules)
    replaced: dict[int, nn.Module] = {}
    for site, old, layer in zip(sites, old_modules, layers, strict=True):
        assert isinstance(old, nn.BatchNorm2d)
        if id(old) not in replaced:
            follower = following_activation(model, site.name) if uses[id(old)] == 1 else None
            new = replaced[id(old)] = _replacement(old, layer, follower is not None)
            if follower and _holds_activation(new):
                set_submodule(model, follower, nn.Identity())
            for module in new.modules():
                if isinstance(module, Normalization):
                    module.stage = site.stage
        model = set_submodule(model, site.name, replaced[id(old)])
    return model


def _holds_activation(layer: nn.Module) -> bool:
    """Whether it calls the activation itself: this project's layers, or those of timm."""
    return getattr(layer, "activation", None) == "relu" or bool(getattr(layer, "apply_act", False))


def set_submodule(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put ``module`` at the dotted ``name``; with the empty name it takes the model's own place."""
    if not name:
        return module
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    return model


def _batch_norm_names(model: nn.Module) -> list[str]:
    modules = model.named_modules(remove_duplicate=False)
    return [name for name, module in modules if isinstance(module, nn.BatchNorm2d)]


def _describe_batch_norms(model: nn.Module) -> str:
    names = _batch_norm_names(model)
    if not names:
        return "it has no 2-D batch norm"
    shown = dict.fromkeys((names[0], names[len(names) // 2], names[-1]))
    return "its 2-D batch norms have names like " + ", ".join(shown)


def _replacement(old: nn.BatchNorm2d, layer: partial[nn.Module], relu_follows: bool) -> nn.Module:
    accepted = inspect.signature(layer).parameters
    trailing: OrderedDict[str, nn.Module] = OrderedDict()
    if isinstance(old, BatchNormAct2d):
        parts = (("drop", old.drop), ("act", old.act))
        trailing.update((name, part) for name, part in parts if type(part) is not nn.Identity)
    options: dict[str, Any] = {"eps": old.eps}
    if old.momentum is not None:
        options["momentum"] = old.momentum
    if not old.track_running_stats:
        options["track_running_stats"] = False
    if [type(part) for part in trailing.values()] == [nn.ReLU] or (relu_follows and not trailing):
        options["activation"] = "relu"
    # timm's layers with an activation of their own take any one's place, and need to know of none.
    options["apply_act"] = relu_follows or "act" in trailing
    options = {k: v for k, v in options.items() if k in accepted and k not in layer.keywords}
    if "activation" in options:
        trailing.clear()
    if options.get("apply_act"):
        trailing.pop("act", None)
    try:
        with torch.device(_device(old)):
            new = layer(old.num_features, **options)
    except ValueError as error:  # of groups that do not divide the channels, that is
        raise UserError(f"A normalizer of {old.num_features} channels: {error}.") from error
    _check_groups(new, old.num_features)
    mark_as_normalizer(new)
    _transfer(old, new)
    if trailing:
        new = nn.Sequential(OrderedDict([("norm", new), *trailing.items()]))
    return new.train(old.training)


def _check_groups(layer: nn.Module, channels: int) -> None:
    groups = getattr(layer, "groups", None)
    if isinstance(groups, int) and channels % groups:
        raise UserError(
            f"{type(layer).__name__}: {channels} channels cannot be shared by {groups} groups: set"
            " norm.options.group_size=8, or another that divides all numbers of channels."
        )


def _device(module: nn.Module) -> torch.device:
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.get_default_device()


def _transfer(old: nn.BatchNorm2d, new: nn.Module) -> None:
    if old.weight is not None and old.weight.dtype != torch.get_default_dtype():
        new.to(old.weight.dtype)
    mine = new.state_dict()
    with torch.no_grad():
        for name, tensor in old.state_dict().items():
            if name in mine and mine[name].shape == tensor.shape:
                mine[name].copy_(tensor)


def following_activation(
    model: nn.Module, name: str, kinds: tuple[type[nn.Module], ...] = (nn.ReLU,)
) -> str | None:
    """The name of an activation that is certain to be called on this module's output alone."""
    if not name:
        return None
    prefix, _, child = name.rpartition(".")
    parent = model.get_submodule(prefix)
    children = dict(parent.named_children())
    order = list(children)
    if type(parent) is nn.Sequential:
        position = order.index(child) + 1
        follower = order[position] if position < len(order) else None
    else:
        follower = _ACTIVATION_AFTER.get(type(parent), {}).get(child)
    if follower is None or type(children.get(follower)) not in kinds:
        return None
    between = order[order.index(child) + 1 : order.index(follower)]
    if any(type(children[name]) is not nn.Identity for name in between):
        return None
    return f"{prefix}.{follower}" if prefix else follower
