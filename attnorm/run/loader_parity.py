"""Checkpoints through several loaders: the same images, decoded and resized by other code."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attnorm import config as schema
from attnorm import distributed
from attnorm.classification import Classification, labelled_images
from attnorm.data.build import has_dali
from attnorm.data.loader import Loader
from attnorm.errors import UserError
from attnorm.run.trained import Trained, load_trained

ALL = ("dali", "torch", "timm")


@dataclass(frozen=True)
class LoaderResult:
    """What a model says of a validation set that one loader gave.

    Attributes:
        top1_error, top5_error: in percent; the latter None with fewer than five classes.
        other_predictions: percent of the images that get another class than through the first.
        pixel_difference: mean absolute difference to the first loader's pixels, in levels of 255.
    """

    loader: str
    top1_error: float
    top5_error: float | None
    other_predictions: float
    pixel_difference: float


def chosen_loaders(wanted: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Names to compare, and those of ``all`` that are not installed here.

    Raises:
        UserError: fewer than two different names.
    """
    if wanted == "all":
        missing = [] if has_dali() else ["dali"]
        return [name for name in ALL if name not in missing], missing
    names = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    if len(names) < 2:
        raise UserError(
            f"loaders={wanted}: give all, or a list of two or more such as [dali,torch]."
        )
    return names, []


@dataclass(frozen=True)
class Comparison:
    """A checkpoint through every loader.

    Attributes:
        trained_with: the loader that its config names.
        images: of the validation set.
    """

    checkpoint: str
    trained_with: str
    images: int
    loaders: tuple[LoaderResult, ...]


@torch.inference_mode()
def compare_loaders(
    path: Path,
    names: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    weights: str = "model",
    allow: Collection[str] = (),
) -> Comparison:
    """Evaluate the checkpoint at ``path`` through every loader at once.

    Raises:
        UserError: the checkpoint, the data or a loader cannot be had, the task is another one, or
            this is one process of several.
    """
    if distributed.world_size() > 1:
        raise UserError("loaders= compares image by image in one process: start without torchrun.")
    trained = load_trained(path, overrides, weights=weights, allow=allow)
    if not isinstance(trained.task, Classification):
        raise UserError(f"loaders= is for task=classification, not {trained.config.task.name}.")
    with ExitStack() as stack:
        loaders = [stack.enter_context(closing(_loader(trained, name))) for name in names]
        counts, images, classes = _count(trained, loaders)
    share = 100.0 / images
    pixels = images * labelled_images(trained.config).image_size ** 2 * 3
    results = tuple(
        LoaderResult(
            loader=name,
            top1_error=share * wrong1,
            top5_error=share * wrong5 if classes >= 5 else None,
            other_predictions=share * other,
            pixel_difference=levels / pixels,
        )
        for name, (wrong1, wrong5, other, levels) in zip(names, counts.tolist(), strict=True)
    )
    return Comparison(str(path), trained.trained_with, images, results)


def _loader(trained: Trained, name: str) -> Loader:
    loader = schema.compose([f"loader={name}"]).loader
    config = replace(
        trained.config, loader=replace(loader, prefetch=trained.config.loader.prefetch)
    )
    built = replace(trained, config=config).loader()
    assert isinstance(built, Loader)
    return built


def _count(trained: Trained, loaders: Sequence[Loader]) -> tuple[Tensor, int, int]:
    """By loader: wrong at 1, wrong at 5, predictions unlike the first's, sum of pixel differences.

    And the numbers of images and of classes.
    """
    counts = torch.zeros(len(loaders), 4, dtype=torch.float64)
    seen = classes = 0
    levels = 255 * torch.tensor(trained.config.data.std).view(1, 3, 1, 1)
    for batches in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        first_images, labels = batches[0]
        first = trained.logits(first_images).argmax(1)
        seen += len(labels)
        for row, (images, own_labels) in zip(counts, batches, strict=True):
            assert torch.equal(own_labels, labels), "loaders give the same images in one order"
            logits = trained.logits(images)
            classes = logits.shape[1]
            hits = logits.topk(min(5, classes)).indices == labels[:, None]
            row[0] += len(labels) - int(hits[:, 0].sum())
            row[1] += len(labels) - int(hits.sum())
            row[2] += int((logits.argmax(1) != first).sum())
            difference = (images.float() - first_images.float()).abs()
            row[3] += float((difference * levels.to(images.device)).sum(dtype=torch.float64))
    return counts, seen, classes


def as_record(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """For a JSON file."""
    return {"checkpoints": [asdict(comparison) for comparison in comparisons]}


def show(comparisons: Sequence[Comparison], console: Console) -> None:
    """The errors beside each other; of several checkpoints, also each one's by every loader."""
    for comparison in comparisons:
        console.print(_by_loader(comparison))
        first = comparison.loaders[0].loader
        console.print(f"{comparison.images:,} images; differences are to loader={first}")
    if len(comparisons) > 1:
        console.print(_by_training(comparisons))


def _by_loader(comparison: Comparison) -> Table:
    table = Table(title=comparison.checkpoint, title_justify="left")
    table.add_column("loader")
    for column in ("top-1", "top-5", "Δ top-1", "other predictions", "pixels, levels"):
        table.add_column(column, justify="right")
    for result in comparison.loaders:
        top5 = "n/a" if result.top5_error is None else f"{result.top5_error:.2f} %"
        table.add_row(
            result.loader,
            f"{result.top1_error:.2f} %",
            top5,
            f"{result.top1_error - comparison.loaders[0].top1_error:+.2f}",
            f"{result.other_predictions:.2f} %",
            f"{result.pixel_difference:.3f}",
        )
    return table


def _by_training(comparisons: Sequence[Comparison]) -> Table:
    """A line per checkpoint, and one over all decisions."""
    table = Table(title="top-1 errors, %", title_justify="left")
    table.add_column("trained with")
    table.add_column("images", justify="right")
    for result in comparisons[0].loaders:
        table.add_column(f"by {result.loader}", justify="right")
    for comparison in comparisons:
        errors = [f"{result.top1_error:.2f}" for result in comparison.loaders]
        table.add_row(comparison.trained_with, f"{comparison.images:,}", *errors)
    total = sum(comparison.images for comparison in comparisons)
    together = [
        sum(comparison.loaders[place].top1_error * comparison.images for comparison in comparisons)
        / total
        for place in range(len(comparisons[0].loaders))
    ]
    table.add_section()
    table.add_row("together", f"{total:,}", *(f"{error:.3f}" for error in together))
    return table
