"""A checkpoint as a model that is ready to answer, and the images it is asked about."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnorm import config as schema
from attnorm import distributed
from attnorm.config import Config
from attnorm.distributed import Placement
from attnorm.errors import UserError
from attnorm.run.allocator import keep_freed_memory
from attnorm.run.prepare import placement_of, task_class
from attnorm.training import checkpoint
from attnorm.training.backends import set_backends
from attnorm.training.checkpoints import load_shared
from attnorm.training.precision import Precision, resolve_precision
from attnorm.training.task import BatchLoader, ConfigurableTask

# What a person may change about a trained model's config, to look at it elsewhere.
KEYS = ("data", "loader", "batch_size", "precision", "device", "channels_last")
DEFAULTS = ("loader=auto", "precision=auto", "device=auto")


@dataclass(frozen=True, eq=False)
class Trained:
    """A model in evaluation mode, on its device.

    ``trained_on`` and ``trained_with`` name the data set and the loader that it comes from;
    ``config`` has what it looks at, and through which.
    """

    path: Path
    trained_on: str
    trained_with: str
    config: Config
    task: ConfigurableTask
    model: nn.Module
    placement: Placement
    precision: Precision

    @property
    def device(self) -> torch.device:
        return self.placement.device

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of the model's outputs.

        Raises:
            UserError: the task has none.
        """
        names = self.task.stored().get("class_names")
        if names is None:
            raise UserError(f"checkpoint={self.path}: task={self.config.task.name} has no classes.")
        return list(names)

    @property
    def label(self) -> str:
        """Such as ``resnet50 an``."""
        return f"{self.config.arch.name} {self.config.norm.name}"

    def logits(self, images: Tensor) -> Tensor:
        """float32 (N, classes) of a batch on the device."""
        with torch.inference_mode(), self.precision.autocast():
            output: Tensor = self.model(images)
        return output.float()

    def loader(self) -> BatchLoader:
        """This process's share of the validation set, in the order of its files.

        Raises:
            UserError: the data cannot be had.
        """
        return self.task.eval_loader(self.config, self.placement)

    def batches(self, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Validation images and labels, the first ``limit`` of them."""
        with closing(self.loader()) as loader:
            remaining = loader.num_images if limit is None else min(limit, loader.num_images)
            for images, labels in loader.epoch(0):
                yield images[:remaining], labels[:remaining]
                remaining -= len(labels)
                if remaining <= 0:
                    return

    def pixels(self, images: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W) as uint8 pictures (N, H, W, 3) on the host."""
        mean, std = (
            torch.tensor(values, device=images.device).view(1, 3, 1, 1)
            for values in (self.config.data.mean, self.config.data.std)
        )
        pixels = (images.float() * std + mean).clamp(0, 1) * 255
        return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def load_trained(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    weights: str = "model",
    allow: Collection[str] = (),
) -> Trained:
    """The model of a checkpoint. Collective: rank 0 reads the file.

    Args:
        overrides: such as ``data.root=…``, of the keys in ``KEYS``.
        weights: model, or ema for their moving average.
        allow: import paths of classes that the checkpoint may name though they are not this
            project's, torch's or timm's.

    Raises:
        UserError: no such checkpoint, an override that is not one of ``KEYS``, or a class that is
            not allowed.
    """
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key.split(".")[0] not in KEYS:
            raise UserError(f"{key} is not a key here: use {', '.join(KEYS)}.")
    keep_freed_memory()
    state = load_shared(path)
    stored = _plain(state["config"], path)
    config = schema.compose([*DEFAULTS, *overrides], stored=stored)
    schema.check_names(config, f"checkpoint={path}", allow)
    process = distributed.current_process(config.device)
    placement = placement_of(config, process)
    task = task_class(config).from_checkpoint(config, state, path)
    model = task.build_model(config, load_pretrained=False)
    checkpoint.load_weights(model, stored_weights(state, weights, path), path)
    model = model.to(process.device).to(memory_format=placement.memory_format).eval()
    precision = resolve_precision(config.precision, process.device)
    set_backends(precision.name)
    origin = stored["data"]["name"], stored["loader"]["name"]
    return Trained(path, *origin, config, task, model, placement, precision)


def _plain(stored: Any, path: Path) -> dict[str, Any]:
    """The stored config, its values checked and what an older version lacked filled in."""
    try:
        return schema.to_container(schema.from_container(stored))
    except UserError as error:
        raise UserError(f"checkpoint={path}: {error}") from error


def stored_weights(state: dict[str, Any], weights: str, path: Path) -> dict[str, Any]:
    """The model's weights in a checkpoint, or their moving average.

    Raises:
        UserError: the run kept no average, or no such weights are known.
    """
    if weights not in ("model", "ema"):
        raise UserError(f"weights={weights}: choose model or ema.")
    stored: dict[str, Any] | None = state["model"]
    if weights == "ema":
        stored = state.get("ema") and state["ema"]["model"]
    if stored is None:
        raise UserError(
            f"weights=ema, but checkpoint={path} has no averaged weights: evaluate weights=model,"
            " or train with ema.decay=0.9999 or the like."
        )
    return stored
