"""The detectors: a pyramid, proposals of regions, and what is said of each region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, RoIAlign
from torchvision.ops.poolers import initLevelMapper

from attnorm.config import ArchConfig, CascadeConfig, DetectorConfig, HTCConfig, NormConfig
from attnorm.detection.backbone import Backbone, build_backbone
from attnorm.detection.batch import Detections, Size, Targets
from attnorm.detection.cascade import CascadeRoIHeads
from attnorm.detection.freeze import freeze
from attnorm.detection.heads import (
    BOX_SIZE,
    MASK_SIZE,
    BoxPredictor,
    MaskPredictor,
    build_box_head,
    build_mask_head,
)
from attnorm.detection.htc import HTCRoIHeads
from attnorm.detection.roi_heads import RoIHeads
from attnorm.detection.semantic import SemanticBranch
from attnorm.detection.weights import load_backbone
from attnorm.errors import UserError

SAMPLES = 2  # points of a cell of RoIAlign, in both directions
SEMANTIC_LEVEL, SEMANTIC_STRIDE = 1, 8  # where the pyramid is fused, as the loader's maps are


class Detector(nn.Module):
    """Faster R-CNN's two steps (Ren et al., 2015) on a feature pyramid, whatever the heads are.

    Attributes:
        backbone: images to a pyramid of feature maps.
        rpn: the pyramid to proposals; torchvision's.
        roi_heads: proposals to detections, or to losses.
    """

    def __init__(
        self, backbone: Backbone, rpn: RegionProposalNetwork, roi_heads: nn.Module
    ) -> None:
        super().__init__()
        self.backbone, self.rpn, self.roi_heads = backbone, rpn, roi_heads

    def forward(
        self,
        images: Tensor,
        sizes: Sequence[Size],
        targets: Sequence[Targets] | None = None,
        semantic: Tensor | None = None,
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: (N, 3, H, W), normalized, padded at the right and at the bottom.
            sizes: of the N images inside the padding.
            targets: of the N images; for training, and for nothing else.
            semantic: int64 (N, H / 8, W / 8), classes and 255 for "ignore"; for detectors with a
                semantic branch.

        Returns:
            Scalars by name: ``loss_objectness``, ``loss_rpn_box_reg``, and those of the RoI heads;
            or the detections of each image, best first, in pixels of ``images``.

        Raises:
            ValueError: targets in evaluation mode, or none in training mode.
        """
        if (targets is not None) != self.training:
            mode = "training" if self.training else "evaluation"
            raise ValueError(f"a detector in {mode} mode got targets={targets is not None}")
        features = self.backbone(images)
        boxes = None if targets is None else [{"boxes": target.boxes} for target in targets]
        proposals, losses = self.rpn(ImageList(images, list(sizes)), features, boxes)
        detections, head_losses = self.roi_heads(features, proposals, sizes, targets, semantic)
        found: list[Detections] = detections
        return {**losses, **head_losses} if self.training else found


def build_detector(
    arch: ArchConfig,
    norm: NormConfig,
    detector: DetectorConfig,
    num_classes: int,
    weights: str | None = None,
) -> Detector:
    """The detector of a config.

    Args:
        arch: the network that becomes the body.
        norm: its normalizer; the pyramid and the heads have those of ``detector``.
        detector: its class says which: Mask R-CNN, Cascade Mask R-CNN or HTC.
        num_classes: without the background.
        weights: what the body starts from, see :func:`load_backbone`.

    Raises:
        UserError: parts that do not fit each other, or weights that do not fit the body.
    """
    backbone = build_backbone(arch, norm, detector)
    if weights is not None:
        load_backbone(backbone, weights, arch, norm)
    freeze(backbone, detector.freeze, detector.frozen_stages)
    rpn = build_rpn(detector)
    return Detector(backbone, rpn, _roi_heads(backbone, detector, num_classes + 1))


class Float32Anchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors in float32 whatever the features are: bfloat16 has steps of 8 pixels at 1333."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """See the base class, which asks the maps for their shapes, device and dtype alone."""
        shapes = [x.new_empty((), dtype=torch.float32).expand(x.shape) for x in feature_maps]
        anchors: list[Tensor] = super().forward(image_list, shapes)
        return anchors


class Float32RPNHead(RPNHead):  # type: ignore[misc]
    """Logits and offsets in float32, under autocast too: proposals and losses are made of them."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See the base class."""
        logits, offsets = super().forward(x)
        return [t.float() for t in logits], [t.float() for t in offsets]


def build_rpn(detector: DetectorConfig) -> RegionProposalNetwork:
    """torchvision's proposals: one 3×3 convolution, an anchor size a level, no normalizer."""
    sizes = tuple((side,) for side in detector.anchor_sizes)
    ratios = (tuple(detector.anchor_ratios),) * len(sizes)
    anchors = Float32Anchors(sizes, ratios)
    return RegionProposalNetwork(
        anchors,
        Float32RPNHead(detector.channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=detector.rpn_samples,
        positive_fraction=0.5,
        pre_nms_top_n=_by_mode(detector, 0),
        post_nms_top_n=_by_mode(detector, 1),
        nms_thresh=detector.rpn_nms,
    )


def build_pool(backbone: Backbone, size: int) -> MultiScaleRoIAlign:
    """RoIAlign of each region from the level that its area asks for (Lin et al., 2017, eq. 1).

    The scales are those of the body. Left to itself, torchvision infers them from the first batch,
    and wrongly from images of some 35 pixels.
    """
    levels = [str(level) for level in range(len(backbone.strides))]
    pool = MultiScaleRoIAlign(levels, size, SAMPLES)
    pool.scales = [1 / stride for stride in backbone.strides]
    first, last = (
        stride.bit_length() - 1 for stride in (backbone.strides[0], backbone.strides[-1])
    )
    pool.map_levels = initLevelMapper(first, last, pool.canonical_scale, pool.canonical_level)
    return pool


def _by_mode(detector: DetectorConfig, which: int) -> dict[str, int]:
    return {
        "training": detector.train_proposals[which],
        "testing": detector.test_proposals[which],
    }


def _roi_heads(backbone: Backbone, detector: DetectorConfig, num_classes: int) -> nn.Module:
    """The heads of ``detector``'s class; ``num_classes`` counts the background."""
    pools = {
        "box_pool": build_pool(backbone, BOX_SIZE),
        "mask_pool": build_pool(backbone, MASK_SIZE),
    }
    stages = len(detector.overlaps) if isinstance(detector, CascadeConfig) else 1
    # Class-agnostic in a cascade: a class is known for certain after the last stage alone.
    agnostic = isinstance(detector, CascadeConfig)
    box_heads = [build_box_head(detector) for _ in range(stages)]
    mask_heads = [build_mask_head(detector) for _ in range(stages)]
    box_predictors = [BoxPredictor(h.out_features, num_classes, agnostic) for h in box_heads]
    mask_predictors = [MaskPredictor(head.out_channels, num_classes) for head in mask_heads]
    if not isinstance(detector, CascadeConfig):
        return RoIHeads(
            **pools,
            box_head=box_heads[0],
            box_predictor=box_predictors[0],
            mask_head=mask_heads[0],
            mask_predictor=mask_predictors[0],
            config=detector,
        )
    parts: dict[str, Any] = {
        **pools,
        "box_heads": box_heads,
        "box_predictors": box_predictors,
        "mask_heads": mask_heads,
        "mask_predictors": mask_predictors,
        "config": detector,
    }
    if not isinstance(detector, HTCConfig):
        return CascadeRoIHeads(**parts)
    return HTCRoIHeads(**parts, **_semantic_parts(backbone, detector))


def _semantic_parts(backbone: Backbone, detector: HTCConfig) -> dict[str, Any]:
    """The branch that segments the whole image, and what takes its features to the regions."""
    if not detector.semantic_branch:
        return {"semantic_branch": None, "semantic_pool": None}
    stride = backbone.strides[SEMANTIC_LEVEL]
    if stride != SEMANTIC_STRIDE:
        raise UserError(
            f"detector.semantic_branch=true needs maps of strides 4, 8, 16 and 32: level"
            f" {SEMANTIC_LEVEL} of detector.out_indices={detector.out_indices} has {stride}."
        )
    channels, levels = detector.channels, [str(level) for level in range(len(backbone.strides))]
    return {
        "semantic_branch": SemanticBranch(
            channels, [*levels, "pool"], SEMANTIC_LEVEL, detector.semantic_classes
        ),
        "semantic_pool": RoIAlign(MASK_SIZE, 1 / stride, SAMPLES),
    }
