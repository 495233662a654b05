"""A model as a folder to share: safetensors, and a ``config.json`` that timm and attnorm read.

A network with batch norms is one of timm's own there, so that timm alone reads it. Any other is the
architecture ``attnorm`` with the two configs as its arguments, known after ``import attnorm``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.models import load_pretrained, register_model
from torch import Tensor, nn

from attnorm.config import ArchConfig, NormConfig, network_from_container
from attnorm.errors import UserError
from attnorm.models.build import build_model, place
from attnorm.models.pretrained import read_weights
from attnorm.models.registry import pyramid_of

WEIGHTS, CONFIG = "model.safetensors", "config.json"
ARCHITECTURE = "attnorm"


def save_folder(
    folder: Path,
    weights: Mapping[str, Tensor],
    arch: ArchConfig,
    norm: NormConfig,
    class_names: Sequence[str],
    preprocessing: Mapping[str, Any],
) -> None:
    """Write ``model.safetensors`` and ``config.json``.

    Args:
        weights: the network's state.
        preprocessing: what timm calls input_size, mean, std, crop_pct and interpolation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in weights.items()}
    safetensors.torch.save_file(state, folder / WEIGHTS, {"format": "pt"})
    for name, tensor in safetensors.torch.load_file(folder / WEIGHTS).items():
        if not torch.equal(tensor, state[name]):
            raise RuntimeError(f"{name} did not survive the export")
    with torch.device("meta"):
        model = build_model(arch, norm, len(class_names), load_pretrained=False)
    known = {
        key: getattr(model, "pretrained_cfg", {}).get(key) for key in ("first_conv", "classifier")
    }
    plain = norm.placement == "everywhere" and norm.layer == "torch.nn.BatchNorm2d"
    stored = {"arch": asdict(arch), "norm": asdict(norm)}
    stored["arch"]["pretrained"] = False
    content = {
        "architecture": arch.timm_model if plain else ARCHITECTURE,
        "num_classes": len(class_names),
        "label_names": list(class_names),
        "model_args": arch.timm_options if plain else stored,
        "pretrained_cfg": {**known, "num_classes": len(class_names), **preprocessing},
        "attnorm": stored,
    }
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_model(folder: str | Path) -> nn.Module:
    """The model of a folder that ``attnorm export`` wrote, in evaluation mode on the CPU.

    Raises:
        UserError: no such folder, a config that this version does not know or that names code of
            others, or weights that do not fit it.
    """
    path = Path(folder) / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        arch, norm = network_from_container(content["attnorm"], str(path))
        classes = int(content["num_classes"])
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give a folder that attnorm export wrote."
        ) from error
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a config that attnorm export wrote.") from error
    model = build_model(arch, norm, classes, load_pretrained=False)
    weights = Path(folder) / WEIGHTS
    try:
        model.load_state_dict(read_weights(str(weights), "load_model"))
    except RuntimeError as error:
        raise UserError(f"{weights} does not fit {path}: {str(error).splitlines()[1]}") from error
    return model.eval()


def register_exported() -> None:
    """Make ``timm.create_model("local-dir:FOLDER")`` know what :func:`save_folder` writes."""
    if not timm.is_model(ARCHITECTURE):
        globals()[ARCHITECTURE] = register_model(_entry_point)


def _entry_point(pretrained: bool = False, **options: Any) -> nn.Module:
    """A network with the normalizer that its config says."""
    if "arch" not in options or "norm" not in options:
        raise UserError(
            "timm's model 'attnorm' is one that attnorm export wrote: create it as"
            " 'local-dir:FOLDER' or 'hf-hub:NAME'."
        )
    stored = {key: options.pop(key) for key in ("arch", "norm")}
    source = options.pop("pretrained_cfg", None)
    arch, norm = network_from_container(stored, "The model's config.json")
    for key in ("pretrained_cfg_overlay", "cache_dir"):
        options.pop(key, None)
    wanted = options.get("num_classes")
    known = (source or {}).get("num_classes")
    if wanted is None and known is not None:
        options["num_classes"] = known

    def finish(model: nn.Module) -> nn.Module:
        model = place(model, arch, norm)
        if source is not None:
            model.pretrained_cfg = source
        if pretrained:
            classes = getattr(model, "num_classes", 0)
            load_pretrained(model, source, num_classes=classes, in_chans=options.get("in_chans", 3))
        return model

    create = partial(timm.create_model, arch.timm_model, **arch.timm_options)
    if options.pop("features_only", False):
        features: nn.Module = create(features_only=True, feature_cls=pyramid_of(finish), **options)
        return features
    return finish(create(**options))


_entry_point.__name__ = _entry_point.__qualname__ = ARCHITECTURE
