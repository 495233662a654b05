"""The mixture weights λ of AN layers over a validation set, and what they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnorm.norms.observe import attentive_layers, record_mixtures
from attnorm.run.trained import Trained

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Mixture:
    """λ of one layer for many images: (N, K), with the images' labels (N,)."""

    site: str
    weights: Array
    labels: NDArray[np.int64]

    @property
    def num_components(self) -> int:
        return int(self.weights.shape[1])

    def effective_per_image(self) -> float:
        """Components that one image mixes: exp of the entropy of its λ / Σλ, averaged."""
        return float(_perplexity(self.weights).mean())

    def effective_overall(self) -> float:
        """Components in use over all images: exp of the entropy of the mean λ / Σλ."""
        return float(_perplexity(self.weights.mean(0, keepdims=True))[0])

    def class_share(self) -> Array:
        """Share of each component's variance that lies between classes (η²), (K,)."""
        total = self.weights.var(0)
        between = np.zeros_like(total)
        for label in np.unique(self.labels):
            members = self.weights[self.labels == label]
            between += len(members) * (members.mean(0) - self.weights.mean(0)) ** 2
        between /= len(self.weights)
        share: Array = np.divide(between, total, out=np.zeros_like(total), where=total > 0)
        return share

    def by_class(self) -> tuple[NDArray[np.int64], Array]:
        """The labels there are, and the mean λ of each, (classes, K)."""
        present = np.unique(self.labels)
        return present, np.stack([self.weights[self.labels == n].mean(0) for n in present])

    def drivers(self, count: int) -> NDArray[np.int64]:
        """The images with the largest λ of each component, (K, ``count``), the largest first."""
        order = np.argsort(-self.weights, axis=0, kind="stable")
        top: NDArray[np.int64] = order[:count].T
        return top


def _perplexity(weights: Array) -> Array:
    sums = weights.sum(1, keepdims=True)
    # An image that uses no component (λ = 0, possible with a hard sigmoid) has no distribution.
    shares = np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    perplexity: Array = np.exp(-(shares * logs).sum(1))
    return perplexity


def collect_mixtures(trained: Trained, limit: int | None = None) -> list[Mixture]:
    """λ of every AN layer over the validation set, or its first ``limit`` images."""
    layers = attentive_layers(trained.model)
    weights: dict[str, list[Array]] = {name: [] for name in layers}
    labels: list[NDArray[np.int64]] = []
    with record_mixtures(trained.model) as latest:
        for images, batch_labels in trained.batches(limit):
            trained.logits(images)
            labels.append(batch_labels.cpu().numpy())
            for name, layer in layers.items():
                of_scale = latest[name][:, : layer.num_components]
                weights[name].append(of_scale.double().cpu().numpy())
    return [Mixture(name, np.concatenate(w), np.concatenate(labels)) for name, w in weights.items()]


def fetch_pixels(trained: Trained, wanted: set[int]) -> dict[int, NDArray[np.uint8]]:
    """Pictures (H, W, 3) of images by their number in the validation set."""
    found: dict[int, NDArray[np.uint8]] = {}
    first = 0
    for images, _ in trained.batches(max(wanted, default=-1) + 1):
        here = [number for number in wanted if first <= number < first + len(images)]
        pixels = trained.pixels(images) if here else None
        for number in here:
            assert pixels is not None
            found[number] = pixels[number - first].numpy()
        first += len(images)
    return found


MIXTURE_HEADS = (
    "layer",
    "K",
    "effective per image",
    "effective overall",
    "λ from",
    "λ to",
    "std over images",
    "between classes",
)


def mixture_rows(mixtures: list[Mixture]) -> list[list[str]]:
    """A layer a row, under ``MIXTURE_HEADS``."""
    rows = []
    for mixture in mixtures:
        means = mixture.weights.mean(0)
        rows.append(
            [
                mixture.site,
                str(mixture.num_components),
                f"{mixture.effective_per_image():.2f}",
                f"{mixture.effective_overall():.2f}",
                f"{means.min():.3f}",
                f"{means.max():.3f}",
                f"{mixture.weights.std(0).mean():.4f}",
                f"{100 * mixture.class_share().mean():.0f} %",
            ]
        )
    return rows
