"""The heads of Mask R-CNN (He et al., 2017): proposals to losses, or to detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from attnorm.config import DetectorConfig
from attnorm.detection.batch import Detections, Size, Targets
from attnorm.detection.losses import box_loss, classification_loss, mask_loss, own_masks
from attnorm.detection.regions import RegionSampler, box_coder, select_detections

OVERLAP = 0.5  # IoU from which a region holds an object


class RoIHeads(nn.Module):
    """One box head and one mask head, which see what they need: the latter no background.

    As torchvision's ``RoIHeads``, with the bend of smooth L1 to choose (``box_loss_beta``).

    Args:
        box_pool: (features, boxes, sizes) to features of each box, such as MultiScaleRoIAlign.
        box_head: these to vectors.
        box_predictor: vectors to class logits, the background first, and offsets of boxes.
        mask_pool: as ``box_pool``, for masks.
        mask_head: features of boxes to the same.
        mask_predictor: these to mask logits of each class.
        config: of the detector.
    """

    def __init__(
        self,
        box_pool: nn.Module,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_pool: nn.Module,
        mask_head: nn.Module,
        mask_predictor: nn.Module,
        config: DetectorConfig,
    ) -> None:
        super().__init__()
        self.box_pool, self.box_head, self.box_predictor = box_pool, box_head, box_predictor
        self.mask_pool, self.mask_head, self.mask_predictor = mask_pool, mask_head, mask_predictor
        self._config = config
        self._sampler = RegionSampler(OVERLAP, config)
        self._coder = box_coder()

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: Sequence[Size],
        targets: Sequence[Targets] | None = None,
        semantic: Tensor | None = None,
    ) -> tuple[list[Detections], dict[str, Tensor]]:
        """Losses where there are targets, else detections; the other of the two is empty.

        Args:
            features: maps of the pyramid, (N, C, H, W) each.
            proposals: float32 (R, 4) of each image: x0, y0, x1, y1 in pixels of the input.
            sizes: of the N images inside the padding.
            targets: of the N images.
            semantic: not used here.

        Returns:
            The detections of each image, best first; ``loss_classifier``, ``loss_box_reg`` and
            ``loss_mask``.
        """
        if targets is None:
            return self._detect(features, proposals, sizes), {}
        return [], self._losses(features, proposals, sizes, targets)

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: Sequence[Size],
        targets: Sequence[Targets],
    ) -> dict[str, Tensor]:
        regions = self._sampler(proposals, targets)
        logits, offsets = self._boxes(features, regions.boxes, sizes)
        positive = regions.positive()
        masks = self._masks(features, positive.boxes, sizes)
        beta = self._config.box_loss_beta
        return {
            "loss_classifier": classification_loss(logits, torch.cat(regions.labels)),
            "loss_box_reg": box_loss(offsets, regions, targets, self._coder, beta),
            "loss_mask": mask_loss(masks, positive, targets),
        }

    def _detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: Sequence[Size]
    ) -> list[Detections]:
        logits, offsets = self._boxes(features, proposals, sizes)
        found = select_detections(logits, offsets, proposals, sizes, self._coder, self._config)
        mask_logits = self._masks(features, [each.boxes for each in found], sizes)
        own = own_masks(mask_logits, [each.labels for each in found])
        return with_masks(found, own.float().sigmoid())

    def _boxes(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[Size]
    ) -> tuple[Tensor, Tensor]:
        logits, offsets = self.box_predictor(self.box_head(self.box_pool(features, boxes, sizes)))
        return logits, offsets

    def _masks(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[Size]
    ) -> Tensor:
        logits: Tensor = self.mask_predictor(self.mask_head(self.mask_pool(features, boxes, sizes)))
        return logits


def with_masks(found: Sequence[Detections], masks: Tensor) -> list[Detections]:
    """Detections of each image with their masks, which come one image after another."""
    parts = masks.split([len(each) for each in found])
    return [replace(each, masks=part) for each, part in zip(found, parts, strict=True)]
