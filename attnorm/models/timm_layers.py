"""Normalizers and channel attention of timm by their names there."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import StdConv2d, get_attn, get_norm_act_layer, get_norm_layer
from torch import nn

from attnorm.errors import UserError
from attnorm.models.sites import set_submodule

# Of timm.layers.create_norm: those that take (N, C, H, W).
NORMS = (
    *("groupnorm", "groupnorm1", "layernorm2d", "layernorm2dfp32", "rmsnorm2d", "rmsnorm2dfp32"),
    *("simplenorm2d", "simplenorm2dfp32", "frozenbatchnorm2d"),
)
# Of create_norm_act: those that are an activation as well.
NORMS_WITH_ACTIVATION = (
    *("evonormb0", "evonormb1", "evonormb2", "evonorms0", "evonorms0a", "evonorms1", "evonorms1a"),
    *("evonorms2", "evonorms2a", "frn", "frntlu"),
)
# Of create_attn: units that are called as unit(channels) and keep the shape ("ge" cannot be built
# with timm 1.0.31).
ATTENTIONS = (
    *("se", "ese", "eca", "ecam", "ceca", "gc", "gca", "cbam", "lcbam"),
    *("coord", "scoord", "ela", "strip"),
)


def timm_layer(name: str, placement: str) -> Any:
    """What makes the layer, called as ``layer(num_features, **options)``.

    Raises:
        UserError: timm has none of that name that fits the placement.
    """
    known = ATTENTIONS if placement == "squeeze" else (*NORMS, *NORMS_WITH_ACTIVATION)
    if name not in known:
        raise UserError(
            f"norm.timm_name={name} is not one that fits here: choose from {', '.join(known)}."
        )
    if placement == "squeeze":
        return get_attn(name)
    if name in NORMS:
        return get_norm_layer(name)
    layer = get_norm_act_layer(name)
    # Where the activation can be chosen timm binds none: the class itself has ReLU.
    return layer.func if isinstance(layer, partial) else layer


def standardize_weights(model: nn.Module) -> nn.Module:
    """Each convolution with timm's StdConv2d in its place (weight standardization, Qiao et al.,

    2019): its kernels are normalized whenever they are used. Returns the model, changed.
    """
    convolutions = [name for name, m in model.named_modules() if type(m) is nn.Conv2d]
    for name in convolutions:
        old = model.get_submodule(name)
        assert isinstance(old, nn.Conv2d)
        new = StdConv2d(
            old.in_channels,
            old.out_channels,
            old.kernel_size,  # type: ignore[arg-type]
            stride=old.stride,  # type: ignore[arg-type]
            padding=old.padding,  # type: ignore[arg-type]
            dilation=old.dilation,  # type: ignore[arg-type]
            groups=old.groups,
            bias=old.bias is not None,
            device="meta",
        )
        new.weight, new.bias = old.weight, old.bias
        model = set_submodule(model, name, new)
    return model
