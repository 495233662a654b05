"""The heads of Cascade Mask R-CNN (Cai and Vasconcelos, 2018): each stage moves the boxes on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attnorm.config import CascadeConfig
from attnorm.detection.batch import Detections, Size, Targets
from attnorm.detection.losses import box_loss, classification_loss, mask_loss, own_masks
from attnorm.detection.regions import (
    Regions,
    RegionSampler,
    box_coder,
    refine,
    select_detections,
)
from attnorm.detection.roi_heads import with_masks


class CascadeRoIHeads(nn.Module):
    """A box head and a mask head for each stage, trained on the boxes of the stage before it.

    As in mmdetection's first version, which the paper's numbers are from: objects' own boxes are
    added to every stage's proposals and taken out before the next; classes are those of the mean
    logits of all stages, boxes those of the last, masks the mean of the stages' probabilities.

    Args:
        box_pool: (features, boxes, sizes) to features of each box, such as MultiScaleRoIAlign.
        box_heads: by stage, these to vectors.
        box_predictors: by stage, vectors to class logits, the background first, and offsets of
            boxes that are the same for all classes.
        mask_pool: as ``box_pool``, for masks.
        mask_heads: by stage, features of boxes to the same.
        mask_predictors: by stage, these to mask logits of each class.
        config: of the detector.
    """

    def __init__(
        self,
        box_pool: nn.Module,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[nn.Module],
        mask_pool: nn.Module,
        mask_heads: Sequence[nn.Module],
        mask_predictors: Sequence[nn.Module],
        config: CascadeConfig,
    ) -> None:
        super().__init__()
        self.box_pool, self.mask_pool = box_pool, mask_pool
        self.box_heads = nn.ModuleList(box_heads)
        self.box_predictors = nn.ModuleList(box_predictors)
        self.mask_heads = nn.ModuleList(mask_heads)
        self.mask_predictors = nn.ModuleList(mask_predictors)
        self._config = config
        self._samplers = [RegionSampler(overlap, config) for overlap in config.overlaps]
        self._coders = [box_coder(stds) for stds in config.offset_stds]
        self._stages = range(len(config.overlaps))

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
            The detections of each image, best first; ``loss_classifier_0``, ``loss_box_reg_0``,
            ``loss_mask_0`` and so on for each stage, weighted as the config says.
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
        losses: dict[str, Tensor] = {}
        beta = self._config.box_loss_beta
        for stage, weight in enumerate(self._config.stage_weights):
            coder = self._coders[stage]
            regions = self._samplers[stage](proposals, targets)
            logits, offsets = self._boxes(stage, features, regions.boxes, sizes)
            proposals = _moved(refine(coder, offsets, regions.boxes, sizes), regions)
            positive = self._mask_regions(stage, regions, proposals, targets).positive()
            masks = self._stage_masks([stage], features, positive.boxes, sizes)[0]
            terms = {
                "loss_classifier": classification_loss(logits, torch.cat(regions.labels)),
                "loss_box_reg": box_loss(offsets, regions, targets, coder, beta),
                "loss_mask": mask_loss(masks, positive, targets),
            }
            losses |= {f"{name}_{stage}": weight * loss for name, loss in terms.items()}
        return losses

    def _mask_regions(
        self,
        stage: int,
        regions: Regions,
        proposals: Sequence[Tensor],
        targets: Sequence[Targets],
    ) -> Regions:
        """What the mask head of ``stage`` is trained on.

        Args:
            stage: counted from 0.
            regions: what its box head was trained on.
            proposals: these, moved by the box head.
            targets: of each image.
        """
        return regions

    def _detect(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[Size]
    ) -> list[Detections]:
        by_stage = []
        for stage in self._stages:
            logits, offsets = self._boxes(stage, features, boxes, sizes)
            by_stage.append(logits.float())
            if stage < self._stages[-1]:
                boxes = refine(self._coders[stage], offsets, boxes, sizes)
        logits = torch.stack(by_stage).mean(0)
        found = select_detections(logits, offsets, boxes, sizes, self._coders[-1], self._config)
        final, labels = [each.boxes for each in found], [each.labels for each in found]
        masks = [
            own_masks(mask_logits, labels).float().sigmoid()
            for mask_logits in self._stage_masks(self._stages, features, final, sizes)
        ]
        return with_masks(found, torch.stack(masks).mean(0))

    def _boxes(
        self, stage: int, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[Size]
    ) -> tuple[Tensor, Tensor]:
        pooled = self._pool_boxes(features, boxes, sizes)
        logits, offsets = self.box_predictors[stage](self.box_heads[stage](pooled))
        return logits, offsets

    def _stage_masks(
        self,
        stages: Sequence[int],
        features: dict[str, Tensor],
        boxes: list[Tensor],
        sizes: Sequence[Size],
    ) -> list[Tensor]:
        """Mask logits of each of ``stages`` on the same boxes."""
        by_stage = self._mask_features(stages, self._pool_masks(features, boxes, sizes))
        return [self.mask_predictors[stage](x) for stage, x in zip(stages, by_stage, strict=True)]

    def _mask_features(self, stages: Sequence[int], pooled: Tensor) -> list[Tensor]:
        """What the mask head of each of ``stages`` makes of the features of boxes."""
        return [self.mask_heads[stage](pooled) for stage in stages]

    def _pool_boxes(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[Size]
    ) -> Tensor:
        pooled: Tensor = self.box_pool(features, boxes, sizes)
        return pooled

    def _pool_masks(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[Size]
    ) -> Tensor:
        pooled: Tensor = self.mask_pool(features, boxes, sizes)
        return pooled


def _moved(boxes: Sequence[Tensor], regions: Regions) -> list[Tensor]:
    """The proposals among moved regions; the next stage gets objects' own boxes as they are."""
    pairs = zip(boxes, regions.from_targets, strict=True)
    return [each[~from_targets] for each, from_targets in pairs]
