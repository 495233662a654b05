"""The groups ``arch`` and ``norm``: which network, and which normalizer where in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from attnorm.config.checks import check_num_components, own_fields, require, require_choice
from attnorm.errors import UserError

# Options of timm.create_model that fetch weights, which a config out of a file must not do.
_READS_FILES = ("pretrained", "checkpoint_path", "cache_dir", "hf_")


@dataclass
class ArchConfig:
    """A timm architecture and the places in it that a normalizer can take."""

    name: str = MISSING
    timm_model: str = MISSING
    timm_options: dict[str, Any] = field(default_factory=dict)
    # Full-match pattern on module names of batch norms; group 1 is the stage that picks K.
    attentive_sites: str | None = None
    # Integer, or list (one per stage).
    attentive_components: Any = 10
    # Where the scale of norm=an's mixtures starts, about; null: K / 2, the paper's start.
    attentive_scale: float | None = None
    # Last normalizer of each residual branch, whose scale norm.zero_init_last sets.
    residual_sites: str | None = None
    # Modules that squeeze-and-excitation follows, and the attribute of their blocks that timm
    # keeps for it (null: the module becomes a Sequential of itself and the unit).
    squeeze_sites: str | None = None
    squeeze_slot: str | None = None
    # Standard deviation of the classifier's new weights, whose biases are 0; null: as timm does it.
    classifier_std: float | None = None
    # true: timm's weights from the hub; a path: .pth or .safetensors.
    pretrained: Any = False

    def __post_init__(self) -> None:
        require(bool(self.timm_model), "arch.timm_model", "''", "the name of a model of timm")
        for key in self.timm_options:
            if key.startswith(_READS_FILES):
                raise UserError(
                    f"arch.timm_options.{key} would read files or the network: weights come from"
                    " arch.pretrained alone."
                )
        check_num_components("arch.attentive_components", self.attentive_components)
        _check_scale("arch.attentive_scale", self.attentive_scale)
        std = self.classifier_std
        require(std is None or std >= 0, "arch.classifier_std", std, "0 or more, or null")
        require(
            isinstance(self.pretrained, bool | str),
            "arch.pretrained",
            self.pretrained,
            "true, false or the path of a .pth or .safetensors file",
        )


@dataclass
class NormConfig:
    """What every normalizer has. ``options`` are keyword arguments of a layer of your own."""

    schema: str = "base_norm"
    name: str = MISSING
    # Import path of the layer class, called as layer(num_features, **options).
    layer: str = MISSING
    # everywhere | attentive (arch.attentive_sites only) | squeeze (beside the batch norms)
    placement: str = "everywhere"
    # Scale of each residual branch's last normalizer: true 0, false 1, null as timm starts it.
    zero_init_last: bool | None = None
    # Kernels are normalized whenever they are used (weight standardization; timm's StdConv2d).
    weight_standardization: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_choice("norm.placement", self.placement, ("everywhere", "attentive", "squeeze"))

    def layer_options(self) -> dict[str, Any]:
        """Keyword arguments for the layer: the typed fields of a subclass, and ``options``."""
        return {**own_fields(self, NormConfig), **self.options}


@dataclass
class GroupNormConfig(NormConfig):
    schema: str = "group_norm"
    num_groups: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_groups >= 1, "norm.num_groups", self.num_groups, "at least 1")


@dataclass
class TimmNormConfig(NormConfig):
    """A normalizer or, with ``placement=squeeze``, a channel attention of ``timm.layers``."""

    schema: str = "timm_norm"
    layer: str = "timm.layers"
    # Such as evonorms0 or eca.
    timm_name: str = MISSING

    def layer_options(self) -> dict[str, Any]:
        """Those of the layer alone."""
        return dict(self.options)


@dataclass
class SwitchNormConfig(NormConfig):
    schema: str = "switch_norm"
    using_bn: bool = True


@dataclass
class SqueezeConfig(NormConfig):
    schema: str = "squeeze"
    reduction: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.reduction >= 1, "norm.reduction", self.reduction, "at least 1")

    def layer_options(self) -> dict[str, Any]:
        """timm's unit takes the reciprocal of the ratio that the SE paper speaks of."""
        return {"rd_ratio": 1 / self.reduction, **self.options}


@dataclass
class AttentiveNormConfig(NormConfig):
    schema: str = "attentive_norm"
    # Integer, list (one per stage), or null for the architecture's own attentive_components.
    num_components: Any = None
    backbone: str = "bn"
    attention: str = "sigmoid"
    separate_attention: bool = False
    # Where the mixtures' scale starts, about; null for the architecture's own attentive_scale.
    initial_scale: float | None = None
    num_groups: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_components is not None:
            check_num_components("norm.num_components", self.num_components)
        _check_scale("norm.initial_scale", self.initial_scale)
        require_choice("norm.backbone", self.backbone, ("bn", "gn", "in", "ln", "sn"))
        require_choice("norm.attention", self.attention, ("sigmoid", "conv_relu", "released"))
        require(self.num_groups >= 1, "norm.num_groups", self.num_groups, "at least 1")


def _check_scale(key: str, scale: float | None) -> None:
    require(scale is None or scale > 0, key, scale, "positive, or null")
