"""Networks: architectures of timm, with a normalizer placed into them."""

from attnorm.models.build import build_model, convert, create_model
from attnorm.models.exported import load_model, register_exported
from attnorm.models.finetune import freeze_for_finetuning
from attnorm.models.registry import register_models

register_models()
register_exported()

__all__ = ["build_model", "convert", "create_model", "freeze_for_finetuning", "load_model"]
