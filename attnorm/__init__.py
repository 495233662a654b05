"""Attentive Normalization and its rivals: train, compare and reuse them in any CNN.

Importing this package also registers ``resnet50_an`` and its relatives with timm.
"""

from attnorm.errors import UserError
from attnorm.models import convert, create_model, freeze_for_finetuning
from attnorm.norms import AttentiveNorm2d, SwitchNorm2d

__version__ = "0.1.0"

__all__ = [
    "AttentiveNorm2d",
    "SwitchNorm2d",
    "UserError",
    "__version__",
    "convert",
    "create_model",
    "freeze_for_finetuning",
]
