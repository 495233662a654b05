"""The group ``augment``: what is done to training images beside cropping and mirroring."""

from __future__ import annotations

from dataclasses import dataclass

from attnorm.config.checks import require


@dataclass
class AugmentConfig:
    """``policy``, ``erasing`` and ``repeats`` are of single images, the others of batches."""

    name: str = "none"
    # Distortions: one of timm's texts such as rand-m7-n2-mstd0.5-inc1, or trivial_augment_wide.
    policy: str | None = None
    # How often a rectangle of an image is erased (to the mean colour).
    erasing: float = 0.0
    # Copies of an image in a batch, each with its own crop; an epoch has as many fewer images.
    repeats: int = 1
    # α of the Beta distributions that images of a pair are mixed by; 0 for not at all.
    mixup: float = 0.0
    cutmix: float = 0.0
    # The share of steps that mix, and, with both, the share of those that do it by cutmix.
    mix_probability: float = 1.0
    cutmix_share: float = 0.5

    def __post_init__(self) -> None:
        for key in ("erasing", "mix_probability", "cutmix_share"):
            value = getattr(self, key)
            require(0 <= value <= 1, f"augment.{key}", value, "from 0 to 1")
        for key in ("mixup", "cutmix"):
            value = getattr(self, key)
            require(value >= 0, f"augment.{key}", value, "0 or more")
        require(self.repeats >= 1, "augment.repeats", self.repeats, "at least 1")

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    @property
    def distorts(self) -> bool:
        """Whether single images are changed."""
        return self.policy is not None or self.erasing > 0
