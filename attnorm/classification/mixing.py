"""Mixup and cutmix on the device, as a pure function of (seed, step).

The images of a batch are mixed in pairs of neighbours, and a step has one λ: so what is mixed is
the same on any number of processes, and in a run that is continued.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attnorm.config import AugmentConfig

_STREAM = 0x6D69786564  # of the seed's own, beside the order of epochs


@dataclass(frozen=True)
class Mix:
    """What was drawn for a step.

    Attributes:
        share: λ, of an image's own label; its neighbour's label has the rest.
        box: the rectangle that comes from the neighbour, (top, bottom, left, right) in pixels; None
            where all pixels are mixed.
    """

    share: float
    box: tuple[int, int, int, int] | None = None


def draw_mix(config: AugmentConfig, seed: int, step: int, height: int, width: int) -> Mix | None:
    """For one step; None where it does not mix.

    mixup (Zhang et al., 2018): λ from Beta(α, α). cutmix (Yun et al., 2019): a rectangle of 1 − λ
    of the image's area around a random centre, cut off at the border; λ is then what is left.
    """
    if not config.mixes:
        return None
    random = np.random.Generator(np.random.Philox([seed, step, _STREAM]))
    turn, kind, down, across = random.random(4)
    if turn >= config.mix_probability:
        return None
    cut = config.cutmix > 0 and (config.mixup == 0 or kind < config.cutmix_share)
    alpha = config.cutmix if cut else config.mixup
    share = float(random.beta(alpha, alpha))
    if not cut:
        return Mix(share)
    side = np.sqrt(1 - share)
    rows, columns = int(height * side), int(width * side)
    centre = int(down * height), int(across * width)
    top, bottom = max(centre[0] - rows // 2, 0), min(centre[0] + (rows + 1) // 2, height)
    left, right = max(centre[1] - columns // 2, 0), min(centre[1] + (columns + 1) // 2, width)
    area = (bottom - top) * (right - left)
    return Mix(1 - area / (height * width), (top, bottom, left, right))


def neighbours(values: Tensor) -> Tensor:
    """(N, …) with the two of each pair exchanged."""
    pairs: Tensor = values.unflatten(0, (-1, 2))
    return pairs.flip(1).flatten(0, 1)


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """(N, C, H, W), N even, each mixed with its neighbour."""
    others = neighbours(images)
    if mix.box is None:
        return torch.lerp(others, images, mix.share)
    top, bottom, left, right = mix.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return mixed


def mix_targets(
    labels: Tensor, num_classes: int, smoothing: float, mix: Mix | None
) -> tuple[Tensor, Tensor]:
    """float32 (N, classes) that add up to 1, and the label (N,) with the greater share.

    Each label has 1 − smoothing, and all classes share the rest.
    """
    own = torch.full((len(labels), num_classes), smoothing / num_classes, device=labels.device)
    own.scatter_(1, labels[:, None], 1 - smoothing + smoothing / num_classes)
    if mix is None:
        return own, labels
    targets = torch.lerp(neighbours(own), own, mix.share)
    return targets, labels if mix.share >= 0.5 else neighbours(labels)
