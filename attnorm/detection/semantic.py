"""The branch of a Hybrid Task Cascade that segments the whole image (Chen et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = 255  # label of pixels that say nothing
CONVOLUTIONS = 4


class SemanticBranch(nn.Module):
    """All levels of a pyramid, fused at one of them, to classes of pixels and to features.

    Args:
        channels: C, of the pyramid and of everything here.
        levels: names of the pyramid's maps, finest first.
        fused_level: which of them the others are resized to, counted from 0.
        num_classes: of pixels.
    """

    def __init__(
        self, channels: int, levels: Sequence[str], fused_level: int, num_classes: int
    ) -> None:
        super().__init__()
        self._levels, self._fused_level = list(levels), fused_level
        self.lateral_convs = nn.ModuleList(_conv(channels, 1) for _ in levels)
        self.convs = nn.Sequential(*(_conv(channels, 3) for _ in range(CONVOLUTIONS)))
        self.conv_embedding = _conv(channels, 1)
        self.conv_logits = nn.Conv2d(channels, num_classes, 1)
        initialize(self.conv_logits)

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor | None, Tensor]:
        """Logits (N, classes, H, W) in training mode, and features (N, C, H, W).

        Args:
            features: maps of the pyramid, (N, C, H, W) each, (H, W) those of the fused level.
        """
        maps = [
            lateral(features[level])
            for lateral, level in zip(self.lateral_convs, self._levels, strict=True)
        ]
        size = maps[self._fused_level].shape[-2:]
        resized = [
            x
            if x.shape[-2:] == size
            else F.interpolate(x, size=size, mode="bilinear", align_corners=True)
            for x in maps
        ]
        x = self.convs(torch.stack(resized).sum(0))
        logits = self.conv_logits(x) if self.training else None
        return logits, self.conv_embedding(x)


def semantic_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over pixels; float32.

    Args:
        logits: (N, classes, H, W).
        labels: int64 (N, H, W), from 0 on, or 255 for pixels that do not count. Without any that
            does, the loss is 0.

    Raises:
        ValueError: the labels are of another size.
    """
    if labels.shape != (len(logits), *logits.shape[2:]):
        shapes = f"{tuple(labels.shape)} for logits of {tuple(logits.shape)}"
        raise ValueError(f"a semantic map of {shapes}")
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def initialize(conv: nn.Conv2d) -> None:
    """He et al. (2015) by fan-out, as the convolutions of the other heads."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)


def _conv(channels: int, side: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, side, padding=side // 2)
    initialize(conv)
    return nn.Sequential(conv, nn.ReLU(inplace=True))
