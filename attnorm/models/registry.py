"""``timm.create_model("resnet50_an")`` and its relatives, for people who live in timm."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
from timm.models import register_model
from timm.models._features import FeatureGetterNet
from torch import nn

from attnorm.config import ArchConfig, choices
from attnorm.models.build import load_configs, norm_keys, place

# Under configs/: the options that are networks of their own names, and change their normalizer.
ARCHITECTURES = [name for name in choices("arch") if name != "timm"]
NORMALIZERS = [name for name in choices("norm") if name != "bn"]


def register_models() -> None:
    """Register ``<arch>_<norm>`` for every combination with timm.

    Each takes what timm's own models take (``num_classes``, ``in_chans``, ``features_only``,
    ``out_indices``, ``pretrained`` for the underlying BN weights) and the normalizer's options,
    such as ``num_components``. A name that timm has itself stays timm's: its ``resnet50_gn`` is
    the same network. Raises :class:`attnorm.UserError` for impossible options.
    """
    for arch, norm in itertools.product(ARCHITECTURES, NORMALIZERS):
        create = _entry_point(arch, norm)
        if not timm.is_model(create.__name__):
            globals()[create.__name__] = register_model(create)


def _entry_point(arch_name: str, norm_name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        own = norm_keys(norm_name) & set(options)
        overrides = {key: options.pop(key) for key in own}
        arch, norm = load_configs(arch_name, norm_name, overrides)
        if not options.pop("features_only", False):
            return place(_create_base(arch, pretrained, options), arch, norm, trained=pretrained)
        # The pyramid is cut after the placement: the cut must not change the number of stages.
        placed = partial(place, arch=arch, norm=norm, trained=pretrained)
        options = {"features_only": True, "feature_cls": pyramid_of(placed), **options}
        return _create_base(arch, pretrained, options)

    create.__name__ = create.__qualname__ = f"{arch_name}_{norm_name}"
    create.__module__ = __name__
    create.__doc__ = f"{arch_name} with norm={norm_name}, as configs/arch and configs/norm say."
    return create


def _create_base(arch: ArchConfig, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    model: nn.Module = timm.create_model(
        arch.timm_model, pretrained=pretrained, **{**arch.timm_options, **options}
    )
    return model


def pyramid_of(
    finish: Callable[[nn.Module], nn.Module],
) -> Callable[..., FeatureGetterNet]:
    """timm's feature pyramid over what ``finish`` makes of its network."""

    def pyramid(model: nn.Module, **options: Any) -> FeatureGetterNet:
        options.pop("flatten_sequential", None)  # for pyramids that take the network apart
        return FeatureGetterNet(finish(model), **options)

    return pyramid
