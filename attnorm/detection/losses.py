"""What heads lose on regions: of classes, boxes and masks (Girshick, 2015; He et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder

from attnorm.detection.batch import Targets
from attnorm.detection.mask_targets import mask_targets
from attnorm.detection.regions import Regions, offsets_by_class

# Losses are float32 whatever the heads compute in. Without regions they are 0, not 0 / 0, and
# still reach every parameter: processes of a distributed run must agree on which have gradients.


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over regions.

    Args:
        logits: (S, classes), the background first.
        labels: int64 (S,).
    """
    if len(labels) == 0:
        return logits.float().sum() * 0
    return F.cross_entropy(logits.float(), labels)


def box_loss(
    offsets: Tensor, regions: Regions, targets: Sequence[Targets], coder: BoxCoder, beta: float
) -> Tensor:
    """Smooth L1 of the offsets of regions that hold objects, over the number of all regions.

    Args:
        offsets: (S, 4), or (S, 4 · classes) of which those of the region's own class count.
        regions: S of them in all images.
        targets: of each image.
        coder: what offsets mean.
        beta: up to where the loss is quadratic.
    """
    labels = torch.cat(regions.labels)
    rows = torch.where(labels > 0)[0]
    by_class = offsets_by_class(offsets)
    columns = labels[rows] if by_class.shape[1] > 1 else 0
    positive = regions.positive()
    pairs = zip(targets, positive.matched, strict=True)
    objects = torch.cat([target.boxes[matched] for target, matched in pairs])
    wanted = coder.encode_single(objects, torch.cat(positive.boxes))
    loss = F.smooth_l1_loss(by_class[rows, columns], wanted, beta=beta, reduction="sum")
    return loss / max(len(labels), 1)


def mask_loss(logits: Tensor, positive: Regions, targets: Sequence[Targets]) -> Tensor:
    """Mean binary cross-entropy of the mask of each region's own class.

    Args:
        logits: (P, classes, side, side).
        positive: P regions in all images, each of which holds an object.
        targets: of each image.
    """
    if len(logits) == 0:
        return logits.float().sum() * 0
    side = logits.shape[-1]
    parts = zip(targets, positive.matched, positive.boxes, strict=True)
    wanted = torch.cat([mask_targets(*part, side) for part in parts])
    return F.binary_cross_entropy_with_logits(own_masks(logits, positive.labels).float(), wanted)


def own_masks(logits: Tensor, labels: Sequence[Tensor]) -> Tensor:
    """Of the masks of all classes (D, classes, side, side) those of ``labels``: (D, side, side)."""
    return logits[torch.arange(len(logits), device=logits.device), torch.cat(list(labels))]
