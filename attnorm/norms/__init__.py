"""Normalizers, usable in any network."""

from attnorm.norms.attentive import AttentiveNorm2d
from attnorm.norms.base import Normalization, is_normalizer, mark_as_normalizer
from attnorm.norms.group import GroupNorm2d
from attnorm.norms.switchable import SwitchNorm2d

__all__ = [
    "AttentiveNorm2d",
    "GroupNorm2d",
    "Normalization",
    "SwitchNorm2d",
    "is_normalizer",
    "mark_as_normalizer",
]
