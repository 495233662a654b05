"""Weights from a file or from timm's hub into a model, with errors that name what does not fit."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from attnorm.errors import UserError

_log = logging.getLogger(__name__)

_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_WRAPPERS = ("state_dict", "model")  # of training checkpoints


def read_weights(path: str, key: str = "arch.pretrained") -> dict[str, Tensor]:
    """The tensors of a ``.safetensors``, ``.pth`` or ``.pt`` file, on the CPU.

    A training checkpoint that keeps them under ``state_dict`` or ``model`` will do. ``key`` names
    the path in error messages.

    Raises:
        UserError: no such file, or not a file of named tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"{key}={path}: there is no such file. Give the path of a .pth or .safetensors file."
        )
    try:
        if file.suffix == ".safetensors":
            content: object = safetensors.torch.load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(
            f"{key}={path} cannot be read as a weights file: {_brief(error)}"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not _all_named_tensors(content):
        raise UserError(f"{key}={path} does not hold a dictionary of named tensors.")
    return {_without_prefix(name): tensor for name, tensor in content.items()}


def fits(model: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of this model's parameters and buffers."""
    return not _missing(model, weights) and not set(weights) - set(model.state_dict())


def load(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load every tensor; a classifier of another width is left at its initialisation.

    Raises:
        UserError: names or shapes differ in anything but the classifier.
    """
    own = model.state_dict()
    missing, unexpected = _missing(model, weights), sorted(set(weights) - set(own))
    misshapen = [name for name in weights if name in own and weights[name].shape != own[name].shape]
    classifier = _classifier_names(model)
    wrong = [name for name in misshapen if name not in classifier]
    for what, names in (("lacks", missing), ("also has", unexpected), ("misshapes", wrong)):
        if names:
            raise UserError(
                f"arch.pretrained={source} is of another model: "
                f"it {what} {len(names)} tensors, such as {names[0]}."
            )
    kept = {name: tensor for name, tensor in weights.items() if name not in misshapen}
    model.load_state_dict(kept, strict=False)
    if misshapen:
        _log.info("%s has another number of classes: the classifier starts afresh.", source)


def from_hub(create: Callable[..., nn.Module], timm_model: str) -> nn.Module:
    """``create(pretrained=True)``, its many ways to fail offline told as one.

    Raises:
        UserError: timm has no such weights, they do not fit the options, or there is no network.
    """
    way_out = "Give arch.pretrained the path of a .pth or .safetensors file instead."
    try:
        return create(pretrained=True)
    except OSError as error:
        reason = "they could not be downloaded"
        raise UserError(f"arch.pretrained=true: {reason} ({_brief(error)}).\n{way_out}") from error
    except RuntimeError as error:
        reason = f"timm's weights for {timm_model} do not fit, or there are none"
        raise UserError(f"arch.pretrained=true: {reason} ({_brief(error)}).\n{way_out}") from error


def _missing(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Names the file lacks; files older than the counter of batches may lack just that."""
    absent = set(model.state_dict()) - set(weights)
    return sorted(name for name in absent if not name.endswith("num_batches_tracked"))


def _classifier_names(model: nn.Module) -> set[str]:
    config = getattr(model, "pretrained_cfg", None) or {}
    classifier = config.get("classifier") or ()
    modules = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return {f"{name}.{leaf}" for name in modules for leaf in ("weight", "bias")}


def _all_named_tensors(content: Mapping[object, object]) -> bool:
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _brief(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
