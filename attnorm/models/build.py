"""Architecture × normalizer → ``nn.Module``, from a config or from Python."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from dataclasses import fields
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import BlurPool2d
from torch import nn

from attnorm.config import (
    ArchConfig,
    NormConfig,
    TimmNormConfig,
    load_arch,
    load_norm,
    locate,
    norm_schema,
)
from attnorm.errors import UserError
from attnorm.models import pretrained
from attnorm.models.recompute import correct_recomputed_statistics
from attnorm.models.sites import (
    Site,
    components_by_site,
    match_batch_norms,
    match_sites,
    replace_batch_norms,
    set_submodule,
)
from attnorm.models.timm_layers import standardize_weights, timm_layer

DEFAULT_COMPONENTS = 10  # the paper's example (§3.3)


def create_model(
    arch: str, norm: str = "an", num_classes: int = 1000, **overrides: Any
) -> nn.Module:
    """An architecture of ``configs/arch`` with a normalizer of ``configs/norm``.

    Args:
        arch: ``resnet50``, ``resnet101``, ``densenet161``, ``mobilenetv2``, or ``timm`` together
            with ``timm_model=`` and ``attentive_sites=``.
        norm: a file of ``configs/norm``: ``bn``, ``gn``, ``sn``, ``se``, ``an`` and others.
        num_classes: Width of the classifier.
        overrides: Any key of the two configs, such as ``num_components=5`` or ``pretrained=True``.

    Raises:
        UserError: an unknown name, key or value.
    """
    arch_config, norm_config = load_configs(arch, norm, overrides)
    return build_model(arch_config, norm_config, num_classes)


def build_model(
    arch: ArchConfig, norm: NormConfig, num_classes: int, *, load_pretrained: bool = True
) -> nn.Module:
    """The network of one config; maps (N, 3, H, W) to logits (N, ``num_classes``).

    ``load_pretrained=False`` ignores ``arch.pretrained``, for weights that a checkpoint replaces.

    Raises:
        UserError: the two configs do not fit each other or the architecture.
    """
    source = arch.pretrained if load_pretrained else False
    model = _create_timm_model(arch, num_classes, from_hub=source is True)
    if not isinstance(source, str):
        return place(model, arch, norm, trained=source)
    weights = pretrained.read_weights(source)
    if pretrained.fits(model, weights):
        pretrained.load(model, weights, source)
        return place(model, arch, norm, trained=True)
    model = place(model, arch, norm)
    pretrained.load(model, weights, source)
    return model


def convert(
    model: nn.Module, norm: str = "an", sites: str | None = None, **options: Any
) -> nn.Module:
    """Replace 2-D batch norms of any network by another normalizer, in place.

    Args:
        model: Any module; torchvision's, timm's or your own.
        norm: ``an``, ``gn``, ``sn``, or ``se`` (which is added after the sites instead).
        sites: Pattern that must match whole module names, group 1 being the stage; without it
            every 2-D batch norm is replaced.
        options: Keys of the normalizer's config, such as ``num_components=[10, 10, 20, 20]``.

    Returns:
        The same model, changed; all other weights and the running statistics are kept. A model
        that is a batch norm itself is returned replaced.

    Raises:
        UserError: an unknown name or option, or sites that match nothing or another kind of module.
    """
    known = norm_keys(norm)
    unknown = sorted(set(options) - known)
    if unknown:
        raise UserError(_unknown_key(unknown[0], known, f"norm={norm}"))
    config = load_norm(norm, **options)
    if config.weight_standardization:
        model = standardize_weights(model)
    if config.placement == "squeeze":
        if sites is None:
            raise UserError(f"norm={norm} needs sites=PATTERN: the modules that the units follow.")
        return _squeeze(model, match_sites(model, sites, "sites"), None, config)
    return _replace(model, match_batch_norms(model, sites, "sites"), config, DEFAULT_COMPONENTS)


def load_configs(arch: str, norm: str, overrides: dict[str, Any]) -> tuple[ArchConfig, NormConfig]:
    """Both configs by name; each override goes to the one that has its key.

    Raises:
        UserError: an unknown name, or a key that neither config has.
    """
    of_norm = norm_keys(norm)
    of_arch = {spec.name for spec in fields(ArchConfig)} - {"name"}
    for key in overrides:
        if key not in of_norm | of_arch:
            raise UserError(_unknown_key(key, of_norm | of_arch, f"arch={arch} or norm={norm}"))
    arch_config = load_arch(arch, **{k: v for k, v in overrides.items() if k in of_arch})
    norm_config = load_norm(norm, **{k: v for k, v in overrides.items() if k in of_norm})
    return arch_config, norm_config


def place(
    model: nn.Module, arch: ArchConfig, norm: NormConfig, *, trained: bool = False
) -> nn.Module:
    """Put the normalizer into the architecture as timm built it; returns the model, changed.

    ``trained`` weights are kept: ``norm.zero_init_last`` is for new ones.

    Raises:
        UserError: the two configs do not fit each other or the architecture.
    """
    if norm.weight_standardization:
        model = standardize_weights(model)
    if norm.placement == "squeeze":
        if arch.squeeze_sites is None:
            raise UserError(
                f"norm={norm.name} needs arch.squeeze_sites, which arch={arch.name} does not set."
            )
        sites = match_sites(model, arch.squeeze_sites, "arch.squeeze_sites")
        model = _squeeze(model, sites, arch.squeeze_slot, norm)
    elif norm.placement == "attentive":
        if arch.attentive_sites is None:
            raise UserError(
                f"norm={norm.name} needs arch.attentive_sites, which arch={arch.name} does not "
                "set: give a pattern that matches the whole names of its batch norms."
            )
        sites = match_batch_norms(model, arch.attentive_sites, "arch.attentive_sites")
        model = _replace(model, sites, norm, arch.attentive_components, arch.attentive_scale)
    elif _layer_class(norm) is not nn.BatchNorm2d:
        model = _replace(model, match_batch_norms(model, None, ""), norm, DEFAULT_COMPONENTS)
    if not trained:
        _scale_residual_branches(model, arch, norm)
        _start_classifier(model, arch)
    correct_recomputed_statistics(model)
    return model


def _create_timm_model(arch: ArchConfig, num_classes: int, from_hub: bool) -> nn.Module:
    if not timm.is_model(arch.timm_model):
        close = difflib.get_close_matches(arch.timm_model, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else "."
        raise UserError(f"arch.timm_model={arch.timm_model} is not a model of timm{hint}")
    options = dict(arch.timm_options)
    if options.get("aa_layer") == "blurpool":  # not all of timm's networks know it by name
        options["aa_layer"] = BlurPool2d
    create = partial(timm.create_model, arch.timm_model, num_classes=num_classes, **options)
    try:
        return pretrained.from_hub(create, arch.timm_model) if from_hub else create()
    except TypeError as error:
        raise UserError(
            f"arch.timm_options={arch.timm_options} does not fit {arch.timm_model}: {error}."
        ) from error


def _layer_class(norm: NormConfig) -> Any:
    if isinstance(norm, TimmNormConfig):
        return timm_layer(norm.timm_name, norm.placement)
    layer = locate(norm.layer, "norm.layer")
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise UserError(f"norm.layer={norm.layer} is not a class of modules.")
    return layer


def norm_keys(norm: str) -> set[str]:
    """Keys of a normalizer's config that a person may set."""
    return {spec.name for spec in fields(norm_schema(norm))} - {"name", "schema"}


def _unknown_key(key: str, known: set[str], owner: str) -> str:
    return f"{key} is not a key of {owner}: choose from {', '.join(sorted(known))}."


def _replace(
    model: nn.Module,
    sites: list[Site],
    norm: NormConfig,
    default_components: int | list[int],
    default_scale: float | None = None,
) -> nn.Module:
    layer, options = _layer_class(norm), norm.layer_options()
    if "initial_scale" in options and options["initial_scale"] is None:
        options["initial_scale"] = default_scale
    if "num_components" not in options:
        return replace_batch_norms(model, sites, [partial(layer, **options)] * len(sites))
    own = options.pop("num_components")
    counts, key = (
        (own, "norm.num_components")
        if own is not None
        else (default_components, "arch.attentive_components")
    )
    components = components_by_site(sites, counts, key)
    layers = [partial(layer, num_components=count, **options) for count in components]
    return replace_batch_norms(model, sites, layers)


def _squeeze(model: nn.Module, sites: list[Site], slot: str | None, norm: NormConfig) -> nn.Module:
    layer = partial(_layer_class(norm), **norm.layer_options())
    for site in sites:
        module = model.get_submodule(site.name)
        channels = getattr(module, "num_features", getattr(module, "out_channels", None))
        if channels is None:
            raise UserError(
                f"norm={norm.name}: {site.name!r} is a {type(module).__name__}, which does not say "
                "how many channels it has; give the names of batch norms or convolutions."
            )
        with torch.device(next(model.parameters()).device):
            unit = layer(channels)
        if slot is None:
            followed = nn.Sequential(OrderedDict(transform=module, squeeze=unit))
            model = set_submodule(model, site.name, followed)
        else:
            _fill_slot(model, f"{site.name.rpartition('.')[0]}.{slot}", unit)
    return model


def _fill_slot(model: nn.Module, name: str, unit: nn.Module) -> None:
    block, _, attribute = name.rpartition(".")
    missing = object()
    present = getattr(model.get_submodule(block), attribute, missing)
    if present is not None and type(present) is not nn.Identity:
        what = "does not exist" if present is missing else f"holds a {type(present).__name__}"
        raise UserError(f"arch.squeeze_slot: {name} {what}; it must be None or an Identity.")
    set_submodule(model, name, unit)


def _start_classifier(model: nn.Module, arch: ArchConfig) -> None:
    if arch.classifier_std is None:
        return
    network: Any = model  # one of timm's
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Linear):
        if isinstance(classifier, nn.Identity):  # num_classes=0: features alone
            return
        kind = type(classifier).__name__
        raise UserError(f"arch.classifier_std: the classifier of {arch.name} is a {kind}.")
    nn.init.normal_(classifier.weight, std=arch.classifier_std)
    if classifier.bias is not None:
        nn.init.zeros_(classifier.bias)


def _scale_residual_branches(model: nn.Module, arch: ArchConfig, norm: NormConfig) -> None:
    if norm.zero_init_last is None or arch.residual_sites is None:
        return
    for site in match_sites(model, arch.residual_sites, "arch.residual_sites"):
        weight = getattr(model.get_submodule(site.name), "weight", None)
        if not isinstance(weight, torch.Tensor):
            raise UserError(f"arch.residual_sites matches {site.name!r}, which has no scale.")
        nn.init.constant_(weight, 0.0 if norm.zero_init_last else 1.0)
