"""Weights of a classifier into a detector's body, with errors that name what does not fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from safetensors import safe_open
from torch import Tensor

from attnorm import config as schema
from attnorm.config import ArchConfig, NormConfig
from attnorm.detection.backbone import Backbone
from attnorm.errors import UserError
from attnorm.models.pretrained import read_weights
from attnorm.training.checkpoint import load_checkpoint

_log = logging.getLogger(__name__)


def load_backbone(
    backbone: Backbone, source: str, arch: ArchConfig, norm: NormConfig, key: str = "weights"
) -> None:
    """Load a classifier's weights into the body; its classifier is dropped.

    Args:
        backbone: what :func:`build_backbone` made of ``arch`` and ``norm``.
        source: a checkpoint of this project (``.pt``; the weights that were trained, not their
            moving average), a ``.safetensors`` or ``.pth`` file with timm's names, which for a
            ResNet are torchvision's too, or ``timm`` for its hub.
        arch: the architecture; a checkpoint's own config must have the same.
        norm: the normalizer; likewise.
        key: names the source in error messages.

    Raises:
        UserError: no such file, or weights of another network.
    """
    if source == "timm":
        weights, stored = _from_hub(arch, norm, key), None
    else:
        weights, stored = _from_file(source, key)
    if stored is not None:
        _require_same(stored, arch, norm, f"{key}={source}")
    _load(backbone, weights, f"{key}={source}", arch, norm)
    _log.info("backbone: %d tensors of %s", len(backbone.body.state_dict()), source)


def _from_hub(arch: ArchConfig, norm: NormConfig, key: str) -> dict[str, Tensor]:
    if norm.name != "bn":
        raise UserError(
            f"{key}=timm has batch norms, but norm={norm.name}: give {key}= the checkpoint of a"
            f" classifier trained with norm={norm.name}."
        )
    try:
        model = timm.create_model(arch.timm_model, pretrained=True, **arch.timm_options)
    except (OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"{key}=timm: weights of {arch.timm_model} could not be had from timm ({reason}).\n"
            f"Give {key}= the path of a .pt, .pth or .safetensors file instead."
        ) from error
    state: dict[str, Tensor] = model.state_dict()
    return state


def _from_file(source: str, key: str) -> tuple[dict[str, Tensor], Mapping[str, Any] | None]:
    """A file's tensors, and the config that it stores beside them, if it does."""
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(
            f"{key}={source}: there is no such file. Give the path of a .pt, .pth or .safetensors"
            " file, or timm."
        )
    if path.suffix == ".pt":
        state = load_checkpoint(path)
        return dict(state["model"]), state["config"]
    weights = read_weights(source, key)
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    exported = "attnorm_version" in metadata  # by scripts/export_safetensors.py
    return weights, json.loads(metadata["config"]) if exported else None


def _require_same(
    stored: Mapping[str, Any], arch: ArchConfig, norm: NormConfig, source: str
) -> None:
    """Refuse weights that say themselves that they are of another network."""
    theirs = schema.from_container(stored)
    if theirs.detector is not None:
        raise UserError(
            f"{source} is the checkpoint of a detector, whose backbone has learnt with it: give a"
            " classifier's, or evaluate or continue this one (checkpoint=, resume=)."
        )
    mine, others = _described(arch, norm), _described(theirs.arch, theirs.norm)
    keys = [key for key in {**mine, **others} if mine.get(key) != others.get(key)]
    if "norm.layer" in keys:  # then the other keys of the norm say nothing
        keys = [key for key in keys if not key.startswith("norm.")] + ["norm"]
        mine["norm"], others["norm"] = norm.name, theirs.norm.name
    if keys:
        there = ", ".join(f"{key}={others.get(key)}" for key in keys[:3])
        here = ", ".join(f"{key}={mine.get(key)}" for key in keys[:3])
        raise UserError(
            f"{source} was trained with {there}, this run has {here}:\ngive weights of the same"
            " network, or change this run."
        )


def _described(arch: ArchConfig, norm: NormConfig) -> dict[str, Any]:
    """What decides what weights mean; what decides their names and shapes shows in these."""
    options = norm.layer_options()
    options.pop("num_components", None)
    return {
        "arch.timm_model": arch.timm_model,
        "norm.layer": norm.layer,
        "norm.placement": norm.placement,
        **{f"norm.{key}": value for key, value in options.items()},
    }


def _load(
    backbone: Backbone,
    weights: Mapping[str, Tensor],
    source: str,
    arch: ArchConfig,
    norm: NormConfig,
) -> None:
    own = backbone.body.state_dict()
    # Files older than the counter of batches may lack just that.
    missing = [n for n in own if n not in weights and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in weights if n not in own and n not in backbone.dropped]
    shared = [n for n in weights if n in own]
    misshapen = [n for n in shared if weights[n].shape != own[n].shape]
    for what, names in (
        ("lacks", missing),
        ("also has", unexpected),
        ("has in another shape", misshapen),
    ):
        if names:
            raise UserError(
                f"{source} is of another network than arch={arch.name}"
                f" (timm_model={arch.timm_model}) with norm={norm.name}:\n"
                f"it {what} {len(names)} tensors, such as {sorted(names)[0]}."
            )
    backbone.body.load_state_dict({name: weights[name] for name in shared}, strict=False)
