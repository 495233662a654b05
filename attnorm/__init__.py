"""Attentive Normalization and its rivals: train, compare and reuse them in any CNN.

The layers need torch alone. Where timm and OmegaConf are installed too (``pip install attnorm``
brings them), importing this package also registers ``resnet50_an`` and its relatives with timm.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from attnorm.errors import UserError
from attnorm.interpreter import without_collector

with without_collector():
    from attnorm.norms import AttentiveNorm2d, SwitchNorm2d

if TYPE_CHECKING:
    from attnorm.config import allow as allow
    from attnorm.models import convert as convert
    from attnorm.models import create_model as create_model
    from attnorm.models import freeze_for_finetuning as freeze_for_finetuning
    from attnorm.models import load_model as load_model

__version__ = "0.2.0"

__all__ = [
    "AttentiveNorm2d",
    "SwitchNorm2d",
    "UserError",
    "__version__",
    "allow",
    "convert",
    "create_model",
    "freeze_for_finetuning",
    "load_model",
]

# What of the package needs more than torch, and where it is.
_ELSEWHERE = {
    "allow": "attnorm.config",
    "convert": "attnorm.models",
    "create_model": "attnorm.models",
    "freeze_for_finetuning": "attnorm.models",
    "load_model": "attnorm.models",
}
_NEEDED = ("timm", "omegaconf", "safetensors")


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        raise ImportError(f"attnorm.{name} needs {', '.join(missing)}: pip install attnorm")
    return getattr(import_module(_ELSEWHERE[name]), name)


if all(find_spec(package) is not None for package in _NEEDED):
    with without_collector():
        import attnorm.models  # noqa: F401 - registers the models with timm
