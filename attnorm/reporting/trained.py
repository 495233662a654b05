"""A checkpoint as a model that is ready to answer, and the images it is asked about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from attnorm import config as schema
from attnorm import distributed
from attnorm.data import build as data
from attnorm.errors import UserError
from attnorm.models.build import build_model
from attnorm.training import checkpoint
from attnorm.training.evaluator import BatchLoader
from attnorm.training.precision import Precision, resolve_precision

# What a person may change about a trained model's config, to look at it elsewhere.
KEYS = ("data", "loader", "batch_size", "precision", "device", "channels_last")
DEFAULTS = ("loader=auto", "precision=auto", "device=auto")


@dataclass(frozen=True, eq=False)
class Trained:
    """A model in evaluation mode, on its device."""

    path: Path
    config: schema.Config
    model: nn.Module
    class_names: list[str]
    device: torch.device
    precision: Precision

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
        """The whole validation set, in the order of its files.

        Raises:
            UserError: the data cannot be had.
        """
        config = self.config
        data.check(
            config.data, config.loader, batch_size=config.batch_size, world_size=1, training=False
        )
        return data.build_eval_loader(
            config.data,
            config.loader,
            batch_size=config.batch_size,
            device=self.device,
            dtype=self.precision.input_dtype,
            channels_last=config.channels_last,
            class_names=self.class_names,
        )

    def batches(self, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Validation images and labels, the first ``limit`` of them."""
        loader = self.loader()
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


def load_trained(path: Path, overrides: Sequence[str] = ()) -> Trained:
    """The model of a checkpoint, with ``overrides`` such as ``data.root=…`` for its data.

    Raises:
        UserError: no such checkpoint, or an override that is not one of ``KEYS``.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key.split(".")[0] not in KEYS:
            raise UserError(f"{key} is not a key here: use {', '.join(KEYS)}.")
    state = checkpoint.load_checkpoint(path)
    stored = schema.from_container(state["config"])
    config = schema.with_overrides(stored, [*DEFAULTS, *overrides])
    process = distributed.current_process(config.device)
    class_names = list(state["class_names"])
    model = build_model(config.arch, config.norm, len(class_names), load_pretrained=False)
    checkpoint.load_weights(model, state["model"], path)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(process.device).to(memory_format=layout).eval()
    precision = resolve_precision(config.precision, process.device)
    return Trained(path, config, model, class_names, process.device, precision)
