"""Small networks and configs that tests of detectors share."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import nn

from attnorm.config import ArchConfig, DetectorConfig, load_arch

SITES = r"layer(\d)\.\d+\.bn2"


def tiny(**overrides: Any) -> ArchConfig:
    """A ResNet of ten layers."""
    options = {"timm_model": "resnet10t", "attentive_sites": SITES, "attentive_components": 2}
    return load_arch("timm", **{**options, **overrides})


def detector(**options: Any) -> DetectorConfig:
    """Mask R-CNN with narrow heads, for images of some 100 pixels."""
    small = {
        "channels": 32,
        "fc_width": 32,
        "anchor_sizes": [8, 16, 32, 64, 128],
        "rpn_samples": 32,
        "box_samples": 16,
        "train_proposals": [50, 50],
        "test_proposals": [50, 20],
    }
    return DetectorConfig(name="mask_rcnn", **{**small, **options})


def randomize(module: nn.Module) -> None:
    """Give every floating-point tensor values that no new network has; variances are positive."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)


def as_kind(kind: type[DetectorConfig], config: DetectorConfig, **options: Any) -> DetectorConfig:
    """The same detector as a cascade or a hybrid task cascade."""
    values = {spec.name: getattr(config, spec.name) for spec in fields(config)}
    del values["schema"]
    return kind(**{**values, **options})
