"""The group ``detector``: what stands on the backbone, and how it is trained (paper, §4.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from attnorm.config.checks import require, require_choice

HEAD_NORMS = ("none", "gn", "sn", "an")


@dataclass
class DetectorConfig:
    """Mask R-CNN on a feature pyramid (He et al., 2017; Lin et al., 2017)."""

    schema: str = "mask_rcnn"
    name: str = MISSING
    # 2fc: two fully connected layers; 4conv1fc: four 3×3 convolutions and one such layer.
    box_head: str = "2fc"
    # Normalizers of the box head's convolutions, the mask head's and the pyramid's: none, gn, sn
    # (instance and layer statistics alone) or an (on group normalization).
    box_head_norm: str = "none"
    mask_head_norm: str = "none"
    fpn_norm: str = "none"
    # K of the box head's convolutions, first to last, where their normalizer is an.
    head_components: list[int] = field(default_factory=lambda: [10, 10, 20, 20])
    head_attention: str = "sigmoid"
    # Channels of the pyramid and of all convolutions on it; width of the fully connected layers.
    channels: int = 256
    fc_width: int = 1024
    # Feature maps of the backbone that the pyramid takes; null: those of strides 4, 8, 16 and 32.
    out_indices: list[int] | None = None
    # The last of them: blocks, or conv_head, MobileNet-v2's 1280 channels.
    last_map: str = "blocks"
    # paper: all γ, β and running statistics, and the attention heads of stage 1 (§4.2); released:
    # batch norms use their running statistics. Both: the first frozen_stages stages and the stem;
    # -1: not the stem either.
    freeze: str = "paper"
    frozen_stages: int = 1
    # Region proposals: boxes as squares of these sides, one for each level of the pyramid.
    anchor_sizes: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    anchor_ratios: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    rpn_samples: int = 256
    # Proposals of a level before, and of an image after suppression.
    train_proposals: list[int] = field(default_factory=lambda: [2000, 2000])
    test_proposals: list[int] = field(default_factory=lambda: [1000, 1000])
    rpn_nms: float = 0.7
    # Boxes that the heads are trained on, by image, and the share of them that may hold objects.
    box_samples: int = 512
    box_positive: float = 0.25
    # Where smooth L1 turns linear: 1 as in Detectron and mmdetection, 1/9 as in torchvision.
    box_loss_beta: float = 1.0
    score_threshold: float = 0.05
    nms: float = 0.5
    detections_per_image: int = 100

    def __post_init__(self) -> None:
        require_choice("detector.box_head", self.box_head, ("2fc", "4conv1fc"))
        for key in ("box_head_norm", "mask_head_norm", "fpn_norm"):
            require_choice(f"detector.{key}", getattr(self, key), HEAD_NORMS)
        require(
            self.box_head == "4conv1fc" or self.box_head_norm == "none",
            "detector.box_head_norm",
            self.box_head_norm,
            "none with detector.box_head=2fc, which has no convolutions",
        )
        components = self.head_components
        valid = len(components) == 4 and min(components) >= 1
        require(valid, "detector.head_components", components, "four integers from 1 on")
        attentions = ("sigmoid", "conv_relu", "released")
        require_choice("detector.head_attention", self.head_attention, attentions)
        require_choice("detector.last_map", self.last_map, ("blocks", "conv_head"))
        require_choice("detector.freeze", self.freeze, ("paper", "released", "none"))
        for key in ("channels", "fc_width", "rpn_samples", "box_samples", "detections_per_image"):
            require(getattr(self, key) >= 1, f"detector.{key}", getattr(self, key), "at least 1")
        require(
            self.frozen_stages >= -1, "detector.frozen_stages", self.frozen_stages, "-1 or more"
        )
        for key in ("train_proposals", "test_proposals"):
            value = getattr(self, key)
            valid = len(value) == 2 and min(value) >= 1
            require(valid, f"detector.{key}", value, "two integers from 1 on")
        for key in ("rpn_nms", "nms", "box_positive"):
            value = getattr(self, key)
            require(0 < value <= 1, f"detector.{key}", value, "in (0, 1]")
        threshold = self.score_threshold
        require(0 <= threshold < 1, "detector.score_threshold", threshold, "in [0, 1)")
        require(self.box_loss_beta > 0, "detector.box_loss_beta", self.box_loss_beta, "positive")
        for key in ("anchor_sizes", "anchor_ratios"):
            value = getattr(self, key)
            require(len(value) >= 1 and min(value) > 0, f"detector.{key}", value, "positive")
        levels = len(self.anchor_sizes)
        require(levels == 5, "detector.anchor_sizes", self.anchor_sizes, "one for each of 5 levels")


@dataclass
class CascadeConfig(DetectorConfig):
    """Cascade Mask R-CNN (Cai and Vasconcelos, 2018): stages that ask for ever better boxes."""

    schema: str = "cascade"
    # By stage: overlap from which a box holds an object, weight of the losses, and the standard
    # deviations that offsets of centres and of logarithmic sides are divided by.
    overlaps: list[float] = field(default_factory=lambda: [0.5, 0.6, 0.7])
    stage_weights: list[float] = field(default_factory=lambda: [1.0, 0.5, 0.25])
    offset_stds: list[list[float]] = field(
        default_factory=lambda: [[0.1, 0.2], [0.05, 0.1], [0.033, 0.067]]
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        stages = len(self.overlaps)
        for key in ("stage_weights", "offset_stds"):
            value = getattr(self, key)
            wanted = f"one for each of detector.overlaps={self.overlaps}"
            require(len(value) == stages, f"detector.{key}", value, wanted)
        pairs = all(len(pair) == 2 and min(pair) > 0 for pair in self.offset_stds)
        require(pairs, "detector.offset_stds", self.offset_stds, "pairs of positive numbers")
        valid = all(0 < overlap < 1 for overlap in self.overlaps)
        require(valid, "detector.overlaps", self.overlaps, "between 0 and 1")


@dataclass
class HTCConfig(CascadeConfig):
    """Hybrid Task Cascade (Chen et al., 2019)."""

    schema: str = "htc"
    # Each stage's mask head gets the features of those before it.
    mask_information_flow: bool = True
    # A branch that segments the whole image, trained on data.semantic and felt by all heads.
    semantic_branch: bool = True
    semantic_classes: int = 183
    semantic_weight: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        classes, weight = self.semantic_classes, self.semantic_weight
        require(classes >= 2, "detector.semantic_classes", classes, "at least 2")
        require(weight >= 0, "detector.semantic_weight", weight, "0 or more")


DETECTOR_SCHEMAS: dict[str, type[Any]] = {
    "mask_rcnn": DetectorConfig,
    "cascade": CascadeConfig,
    "htc": HTCConfig,
}
