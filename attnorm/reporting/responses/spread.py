"""Filter responses after chosen units of a network, image by image (paper, Figure 2).

The paper argues that responses of images of one class are more alike under AN than under BN. The
number for that: the mean distance between response distributions of two images of the same class,
divided by that of two images of different classes. A network's own scale cancels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attnorm.errors import UserError
from attnorm.models.sites import match_sites
from attnorm.run.trained import Trained

# Residual blocks, dense layers and inverted residuals as timm names them: stage and unit.
_UNITS = re.compile(r"(?:features\.)?(layer|denseblock|blocks\.)(\d+)\.(denselayer)?(\d+)")


@dataclass(frozen=True)
class Unit:
    """A module whose output is looked at; ``label`` is the paper's, such as stage-3-unit-6."""

    name: str
    label: str


@dataclass(frozen=True)
class Spread:
    """Mean Wasserstein-1 distances between response distributions, in units of the responses."""

    within: float
    between: float

    @property
    def ratio(self) -> float:
        """Below 1 where images of one class are more alike than images of different classes."""
        return self.within / self.between


def choose_units(model: nn.Module, pattern: str | None = None) -> list[Unit]:
    """Modules whose whole name matches ``pattern``, or the last unit of every stage.

    Raises:
        UserError: nothing matches, or the network does not name stages and units.
    """
    if pattern is not None:
        names = [site.name for site in match_sites(model, pattern, "sites")]
        return [Unit(name, _label(name) or name) for name in names]
    last: dict[str, Unit] = {}
    for name, _ in model.named_modules():
        found = _UNITS.fullmatch(name)
        if found:
            last[found[2]] = Unit(name, _label(name))
    if not last:
        raise UserError(
            "sites is not set, and this network does not name its stages and units as timm's"
            r" ResNets do: pass sites=PATTERN, such as 'sites=stage(\d)\.2'."
        )
    return list(last.values())


def _label(name: str) -> str:
    """Units are counted from 1 in the paper; most names count them from 0."""
    found = _UNITS.fullmatch(name)
    if not found:
        return ""
    stage = int(found[2]) + int(found[1] == "blocks.")
    return f"stage-{stage}-unit-{int(found[4]) + int(found[3] is None)}"


def sample_images(
    trained: Trained, classes: Sequence[str] | int, per_class: int
) -> tuple[Tensor, NDArray[np.int64]]:
    """The first validation images of some classes (named, or the first so many).

    Returns:
        Images (N, 3, H, W) on the device, ordered by class, and their labels (N,).

    Raises:
        UserError: a class that the model does not know, or that has too few images.
    """
    names = trained.class_names
    chosen = names[:classes] if isinstance(classes, int) else list(classes)
    for name in chosen:
        if name not in names:
            raise UserError(f"classes={name} is not one of the model's {len(names)} classes.")
    kept: dict[int, list[Tensor]] = {names.index(name): [] for name in chosen}
    for images, labels in trained.batches():
        for image, label in zip(images, labels.tolist(), strict=True):
            if label in kept and len(kept[label]) < per_class:
                kept[label].append(image.clone())
        if all(len(found) == per_class for found in kept.values()):
            break
    for label, found in kept.items():
        if len(found) < per_class:
            raise UserError(
                f"images={per_class}: class {names[label]} has only {len(found)} in the validation"
                " set; lower images=."
            )
    stacked = torch.stack([image for found in kept.values() for image in found])
    return stacked, np.repeat(list(kept), per_class)


def collect_responses(
    trained: Trained, images: Tensor, units: Sequence[Unit]
) -> dict[str, NDArray[np.float32]]:
    """Every unit's responses by label: (N, C·H·W), each image's values sorted."""
    responses: dict[str, list[NDArray[np.float32]]] = {unit.label: [] for unit in units}

    def keep(label: str) -> object:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            values = output.detach().float().flatten(1).sort(dim=1).values
            responses[label].append(values.cpu().numpy())

        return hook

    modules = dict(trained.model.named_modules())
    handles = [modules[u.name].register_forward_hook(keep(u.label)) for u in units]  # type: ignore[arg-type]
    try:
        for batch in images.split(trained.config.batch_size):
            trained.logits(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {label: np.concatenate(parts) for label, parts in responses.items()}


def distances(responses: NDArray[np.float32]) -> NDArray[np.float64]:
    """Wasserstein-1 distances (N, N) between rows of equally many sorted values (N, V).

    Between two samples of equal size it is the mean difference of their order statistics.
    """
    count = len(responses)
    matrix = np.zeros((count, count))
    for first in range(count):
        for second in range(first):
            gap = np.abs(responses[first] - responses[second]).mean(dtype=np.float64)
            matrix[first, second] = matrix[second, first] = gap
    return matrix


def spread(responses: NDArray[np.float32], labels: NDArray[np.int64]) -> Spread:
    """Within-class and between-class spread of sorted responses (N, V), over all pairs."""
    matrix = distances(responses)
    upper = np.triu(np.ones_like(matrix, dtype=bool), k=1)
    same = labels[:, None] == labels[None, :]
    return Spread(float(matrix[upper & same].mean()), float(matrix[upper & ~same].mean()))


def spread_table(
    spreads: Mapping[str, Mapping[str, Spread]],
) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: a unit a row, within, between and their ratio for every model."""
    heads = ["unit"]
    for model in spreads:
        heads += [f"{model}: within", "between", "within ÷ between"]
    rows: list[list[str]] = []
    # Models of one architecture have the same units; others are lined up stage by stage.
    columns = [list(by_unit.items()) for by_unit in spreads.values()]
    for place in range(max(len(column) for column in columns)):
        row = [next(column[place][0] for column in columns if place < len(column))]
        for column in columns:
            if place < len(column):
                found = column[place][1]
                row += [f"{found.within:.4f}", f"{found.between:.4f}", f"{found.ratio:.3f}"]
            else:
                row += ["–"] * 3
        rows.append(row)
    return heads, rows
