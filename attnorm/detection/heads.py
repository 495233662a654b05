"""What is computed on each region: the box head, the mask head, and their predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from attnorm.config import DetectorConfig
from attnorm.errors import UserError
from attnorm.norms import AttentiveNorm2d, GroupNorm2d, SwitchNorm2d

NormMaker = Callable[[int], nn.Module] | None

CONVOLUTIONS = 4  # of a box head 4conv1fc, and of a mask head
BOX_SIZE, MASK_SIZE = 7, 14  # sides of the grids that regions are sampled on


class BoxHead(nn.Module):
    """Convolutions, then fully connected layers, ReLU after each: (P, C, S, S) to (P, F).

    Args:
        in_channels: C.
        size: S.
        conv_channels: width of the 3×3 convolutions.
        norms: by convolution, first to last, what makes its normalizer; None for a bias instead.
            An empty sequence for a head of fully connected layers alone.
        fc_widths: of the fully connected layers, F the last of them.
    """

    def __init__(
        self,
        in_channels: int,
        size: int,
        conv_channels: int,
        norms: Sequence[NormMaker],
        fc_widths: Sequence[int],
    ) -> None:
        super().__init__()
        self.convs = _convolutions(in_channels, conv_channels, norms)
        width = (conv_channels if norms else in_channels) * size * size
        layers: list[nn.Module] = []
        for fc_width in fc_widths:
            layers += [nn.Linear(width, fc_width), nn.ReLU(inplace=True)]
            width = fc_width
        self.fcs = nn.Sequential(*layers)
        self.out_features = width
        for module in self.fcs:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.fcs(self.convs(x).flatten(1))
        return features


class BoxPredictor(nn.Module):
    """(P, F) to class logits (P, ``num_classes``) and box offsets.

    Offsets are (P, 4) if ``agnostic``, else (P, 4 · ``num_classes``), four for each class in turn.
    The background, class 0, is one of the classes.
    """

    def __init__(self, in_features: int, num_classes: int, agnostic: bool = False) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_classes)
        self.bbox_pred = nn.Linear(in_features, 4 if agnostic else 4 * num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x)


class MaskHead(nn.Module):
    """3×3 convolutions with ReLU: (P, C, S, S) to (P, ``conv_channels``, S, S).

    Args:
        in_channels: C.
        conv_channels: width of the convolutions.
        norms: as in :class:`BoxHead`.
    """

    def __init__(self, in_channels: int, conv_channels: int, norms: Sequence[NormMaker]) -> None:
        super().__init__()
        self.convs = _convolutions(in_channels, conv_channels, norms)
        self.out_channels = conv_channels

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.convs(x)
        return features


class MaskPredictor(nn.Module):
    """(P, C, S, S) to mask logits (P, ``num_classes``, 2 S, 2 S), one mask for each class."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(in_channels, in_channels, 2, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.mask_fcn_logits = nn.Conv2d(in_channels, num_classes, 1)
        for layer in (self.conv5_mask, self.mask_fcn_logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.mask_fcn_logits(self.relu(self.conv5_mask(x)))
        return logits


def build_box_head(detector: DetectorConfig) -> BoxHead:
    """``detector.box_head`` on 7×7 features of the pyramid."""
    channels, width = detector.channels, detector.fc_width
    if detector.box_head == "2fc":
        return BoxHead(channels, BOX_SIZE, channels, [], [width, width])
    norms = conv_norms("box_head_norm", detector)
    return BoxHead(channels, BOX_SIZE, channels, norms, [width])


def build_mask_head(detector: DetectorConfig) -> MaskHead:
    """Four convolutions on 14×14 features of the pyramid."""
    norms = conv_norms("mask_head_norm", detector)
    return MaskHead(detector.channels, detector.channels, norms)


def conv_norms(key: str, detector: DetectorConfig) -> list[NormMaker]:
    """What makes the normalizers of four convolutions in a row, as ``key`` of the config says.

    gn has 32 groups (Wu and He, 2018); sn mixes statistics of instances and layers alone, as
    in its authors' detectors; an is on group normalization, with its own number of components for
    each convolution (``detector.head_components``).

    Raises:
        UserError: a normalizer that needs more instances than there may be.
    """
    kind, attention = getattr(detector, key), detector.head_attention
    if kind == "an" and attention == "released" and key != "box_head_norm":
        raise UserError(
            f"detector.{key}=an is not possible with detector.head_attention=released, which"
            " normalizes over a batch: one may hold a single image, or no object.\n"
            f"Use detector.{key}=gn, or detector.head_attention=sigmoid."
        )
    attentive = [
        partial(AttentiveNorm2d, num_components=count, backbone="gn", attention=attention)
        for count in detector.head_components
    ]
    makers: dict[str, Sequence[NormMaker]] = {
        "none": [None] * CONVOLUTIONS,
        "gn": [GroupNorm2d] * CONVOLUTIONS,
        "sn": [partial(SwitchNorm2d, using_bn=False)] * CONVOLUTIONS,
        "an": attentive,
    }
    return list(makers[kind])


def _convolutions(
    in_channels: int, conv_channels: int, norms: Sequence[NormMaker]
) -> nn.Sequential:
    """3×3 convolutions, each with its normalizer or a bias, and a ReLU."""
    blocks = nn.Sequential()
    for index, make in enumerate(norms):
        conv = nn.Conv2d(in_channels, conv_channels, 3, padding=1, bias=make is None)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        block = nn.Sequential()
        block.add_module("conv", conv)
        if make is None:
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        else:
            block.add_module("norm", make(conv_channels))
        block.add_module("relu", nn.ReLU(inplace=True))
        blocks.add_module(str(index), block)
        in_channels = conv_channels
    return blocks
