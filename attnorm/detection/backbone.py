"""A network of timm as the body of a feature pyramid (Lin et al., 2017), with any normalizer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from attnorm.config import ArchConfig, DetectorConfig, NormConfig
from attnorm.detection.heads import conv_norms
from attnorm.errors import UserError
from attnorm.models import build_model

STRIDES = (4, 8, 16, 32)  # of the maps that a pyramid is built on, unless out_indices says others


class Backbone(nn.Module):
    """Images to a pyramid of feature maps.

    ``body`` is the classifier without its classifier, so weights have the names that they have
    there, in every architecture.

    Attributes:
        out_channels: of every map of the pyramid.
        strides: of the four maps that the body gives, in pixels.
        stages: names of the body's modules whose outputs these maps are, first to last.
        dropped: names of the classifier's parameters and buffers that the body has no use for.
    """

    def __init__(
        self,
        body: nn.Module,
        fpn: FeaturePyramidNetwork,
        *,
        indices: Sequence[int],
        strides: Sequence[int],
        stages: Sequence[str],
        conv_head: bool,
        out_channels: int,
        dropped: frozenset[str],
    ) -> None:
        super().__init__()
        self.body, self.fpn = body, fpn
        self.out_channels = out_channels
        self.strides, self.stages = tuple(strides), tuple(stages)
        self.dropped = dropped
        self._indices, self._conv_head = list(indices), conv_head

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """(N, 3, H, W) to maps ``0`` to ``3`` and ``pool``, (N, out_channels, H / s, W / s).

        The strides s are those of the body, and twice the last one of ``pool``, rounded up.
        """
        maps = OrderedDict((str(level), x) for level, x in enumerate(self.maps(images)))
        pyramid: OrderedDict[str, Tensor] = self.fpn(maps)
        return pyramid

    def maps(self, images: Tensor) -> list[Tensor]:
        """The four maps of the body alone."""
        body: Any = self.body
        if not self._conv_head:
            maps = body.forward_intermediates(
                images, indices=self._indices, intermediates_only=True
            )
            return list(maps)
        last, maps = body.forward_intermediates(images, indices=self._indices)
        return [*maps[:-1], last]


def build_backbone(arch: ArchConfig, norm: NormConfig, detector: DetectorConfig) -> Backbone:
    """The network of ``arch`` with ``norm``, cut to its feature maps, and a pyramid on them.

    The normalizer is placed before the cut, which could change the number of stages.

    Raises:
        UserError: the configs do not fit each other, or the network has no such maps.
    """
    body: Any = build_model(arch, norm, num_classes=1, load_pretrained=False)
    names = set(body.state_dict())
    information = _feature_information(body, arch)
    indices = _indices(information, arch, detector)
    conv_head = detector.last_map == "conv_head"
    if conv_head:
        _require_conv_head(body, arch, indices[-1] == len(information) - 1)
    channels = [int(information[index]["num_chs"]) for index in indices]
    body.prune_intermediate_layers(indices, prune_norm=not conv_head, prune_head=not conv_head)
    if conv_head:
        body.reset_classifier(0, "")
        channels[-1] = int(body.conv_head.out_channels)
    fpn = FeaturePyramidNetwork(
        channels,
        detector.channels,
        extra_blocks=LastLevelMaxPool(),
        norm_layer=_pyramid_norm(detector),
    )
    return Backbone(
        body,
        fpn,
        indices=indices,
        strides=[int(information[index]["reduction"]) for index in indices],
        stages=[str(information[index]["module"]) for index in indices],
        conv_head=conv_head,
        out_channels=detector.channels,
        dropped=frozenset(names - set(body.state_dict())),
    )


def _feature_information(body: Any, arch: ArchConfig) -> list[dict[str, Any]]:
    """What timm knows of the network's feature maps: channels, stride and module of each."""
    information = getattr(body, "feature_info", None)
    complete = hasattr(body, "forward_intermediates") and hasattr(body, "prune_intermediate_layers")
    if not information or not complete:
        raise UserError(
            f"arch.timm_model={arch.timm_model} does not offer its feature maps: choose a network"
            " of timm that does, such as a ResNet, DenseNet, RegNet or EfficientNet."
        )
    return [information[index] for index in range(len(information))]


def _indices(
    information: Sequence[dict[str, Any]], arch: ArchConfig, detector: DetectorConfig
) -> list[int]:
    """Which feature maps the pyramid takes."""
    strides = [int(entry["reduction"]) for entry in information]
    if detector.out_indices is None:
        if not set(STRIDES) <= set(strides):
            raise UserError(
                f"arch.timm_model={arch.timm_model} has maps of strides"
                f" {', '.join(map(str, sorted(set(strides))))}; a pyramid needs those of 4, 8, 16"
                " and 32: choose another network, or set detector.out_indices."
            )
        # Of several maps of a stride the last one, which is the deepest.
        return [max(i for i, s in enumerate(strides) if s == stride) for stride in STRIDES]
    chosen = detector.out_indices
    valid = len(chosen) == 4 and all(0 <= index < len(strides) for index in chosen)
    taken = [strides[index] for index in chosen] if valid else []
    if not valid or any(2 * fine != coarse for fine, coarse in pairwise(taken)):
        known = ", ".join(f"{index}: {stride}" for index, stride in enumerate(strides))
        raise UserError(
            f"detector.out_indices={chosen} is not possible: give four maps whose strides double;"
            f" {arch.timm_model} has (index: stride) {known}."
        )
    return chosen


def _require_conv_head(body: nn.Module, arch: ArchConfig, takes_last_map: bool) -> None:
    if not isinstance(getattr(body, "conv_head", None), nn.Conv2d) or not takes_last_map:
        raise UserError(
            f"detector.last_map=conv_head: arch.timm_model={arch.timm_model} has no conv_head after"
            " its last map of detector.out_indices. Use detector.last_map=blocks."
        )


def _pyramid_norm(detector: DetectorConfig) -> Callable[[int], nn.Module] | None:
    """A maker of normalizers for the pyramid, which asks for two a level, finest level first."""
    makers = iter([make for make in conv_norms("fpn_norm", detector) for _ in range(2)])

    def make(channels: int) -> nn.Module:
        norm = next(makers)
        assert norm is not None
        return norm(channels)

    return None if detector.fpn_norm == "none" else make
