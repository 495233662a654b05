"""What is done to the pixels of a training image: a policy of distortions, and random erasing.

The distortions are timm's, on Pillow images. What is drawn is not drawn there but comes in as
numbers, so that every image of an epoch is the same again whoever makes it, and when.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attnorm.errors import UserError

Numbers = Sequence[float] | NDArray[np.float64]

_DRAWS_PER_OPERATION = 4  # whether, how strongly, which sign, which interpolation
_ERASING_DRAWS = 1 + 10 * 4
_ERASED_AREA, _ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # torchvision's RandomErasing
_TRIVIAL_BINS = 31
_TINY = 1e-12  # inside the open interval that a quantile function takes


@dataclass(frozen=True)
class Operation:
    """One distortion of a policy: by timm's name, how often, and how strongly (0 to 10)."""

    name: str
    probability: float
    magnitude: float
    deviation: float = 0.0
    largest: float = 10.0

    def __call__(self, image: Image.Image, numbers: Numbers, fill: tuple[int, ...]) -> Image.Image:
        """Done to the image, if it is its turn."""
        turn, strength, sign, interpolation = numbers
        if turn >= self.probability:
            return image
        magnitude = self.magnitude
        if self.deviation > 0:
            quantile = min(max(strength, _TINY), 1 - _TINY)
            magnitude = NormalDist(self.magnitude, self.deviation).inv_cdf(quantile)
        magnitude = min(max(magnitude, 0.0), self.largest)
        return distort(image, self.name, magnitude, sign < 0.5, interpolation < 0.5, fill)


def distort(
    image: Image.Image,
    name: str,
    magnitude: float,
    negative: bool,
    bilinear: bool,
    fill: tuple[int, ...],
) -> Image.Image:
    """One of timm's distortions.

    Args:
        magnitude: from 0 to 10, as in timm's policies.
        negative: the other way, where there are two.
        bilinear: else bicubic, where pixels move.
        fill: the colour of what comes in from outside.
    """
    from timm.data.auto_augment import NAME_TO_OP

    method = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
    values = _values(name, magnitude, -1.0 if negative else 1.0)
    distorted: Image.Image = NAME_TO_OP[name](image, *values, resample=method, fillcolor=fill)
    return distorted


def _values(name: str, magnitude: float, sign: float) -> tuple[float, ...]:
    """What timm's operator takes for a magnitude (its ``LEVEL_TO_ARG``, with the sign given)."""
    share = magnitude / 10
    match name:
        case "AutoContrast" | "Equalize" | "Invert":
            return ()
        case "Rotate":
            return (sign * 30 * share,)
        case "ShearX" | "ShearY":
            return (sign * 0.3 * share,)
        case "TranslateXRel" | "TranslateYRel":
            return (sign * 0.45 * share,)
        case "Posterize":
            return (int(share * 4),)
        case "PosterizeIncreasing":
            return (4 - int(share * 4),)
        case "PosterizeOriginal":
            return (int(share * 4) + 4,)
        case "Solarize":
            return (min(256, int(share * 256)),)
        case "SolarizeIncreasing":
            return (256 - min(256, int(share * 256)),)
        case "SolarizeAdd":
            return (min(128, int(share * 110)),)
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return (share * 1.8 + 0.1,)
        case "ColorIncreasing" | "ContrastIncreasing" | "BrightnessIncreasing":
            return (max(0.1, 1 + sign * 0.9 * share),)
        case "SharpnessIncreasing":
            return (max(0.1, 1 + sign * 0.9 * share),)
    raise UserError(f"augment.policy: this project does not know timm's distortion {name}.")


class Policy(Protocol):
    """Distorts an image by ``draws`` numbers in [0, 1)."""

    @property
    def draws(self) -> int: ...

    def __call__(
        self, image: Image.Image, numbers: Numbers, fill: tuple[int, ...]
    ) -> Image.Image: ...


@dataclass(frozen=True)
class RandAugment:
    """``layers`` of the operations, drawn with replacement (Cubuk et al., 2020)."""

    operations: tuple[Operation, ...]
    layers: int

    @property
    def draws(self) -> int:
        return self.layers * (1 + _DRAWS_PER_OPERATION)

    def __call__(self, image: Image.Image, numbers: Numbers, fill: tuple[int, ...]) -> Image.Image:
        for layer in range(self.layers):
            which, *others = numbers[layer * 5 : layer * 5 + 5]
            operation = self.operations[int(which * len(self.operations))]
            image = operation(image, others, fill)
        return image


@dataclass(frozen=True)
class AutoAugment:
    """One of the sequences of operations (Cubuk et al., 2019)."""

    sequences: tuple[tuple[Operation, ...], ...]

    @property
    def draws(self) -> int:
        return 1 + _DRAWS_PER_OPERATION * max(map(len, self.sequences))

    def __call__(self, image: Image.Image, numbers: Numbers, fill: tuple[int, ...]) -> Image.Image:
        for turn, operation in enumerate(self.sequences[int(numbers[0] * len(self.sequences))]):
            start = 1 + _DRAWS_PER_OPERATION * turn
            image = operation(image, numbers[start : start + _DRAWS_PER_OPERATION], fill)
        return image


@dataclass(frozen=True)
class TrivialAugmentWide:
    """One distortion of any strength (Müller, Hutter, 2021), as torchvision's of that name.

    What comes in from outside is black, and pixels are taken from their nearest neighbour.
    """

    @property
    def draws(self) -> int:
        return 3

    def __call__(self, image: Image.Image, numbers: Numbers, fill: tuple[int, ...]) -> Image.Image:
        which, strength, sign = numbers
        name = _TRIVIAL[int(which * len(_TRIVIAL))]
        return distort_trivially(
            image, name, int(strength * _TRIVIAL_BINS), -1.0 if sign < 0.5 else 1.0
        )


_TRIVIAL = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color"),
    *("Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)


def distort_trivially(image: Image.Image, name: str, level: int, sign: float) -> Image.Image:
    """A distortion of :class:`TrivialAugmentWide`, ``level`` from 0 to 30."""
    from timm.data.auto_augment import NAME_TO_OP

    share = level / (_TRIVIAL_BINS - 1)
    match name:
        case "Identity":
            return image
        case "ShearX" | "ShearY":
            values: tuple[float, ...] = (sign * 0.99 * share,)
        case "TranslateX" | "TranslateY":
            values = (int(sign * 32 * share),)
        case "Rotate":
            values = (sign * 135 * share,)
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            values = (1 + sign * 0.99 * share,)
        case "Posterize":
            values = (8 - round(level / ((_TRIVIAL_BINS - 1) / 6)),)
        case "Solarize":
            values = (255 * (1 - share),)
        case _:
            values = ()
    nearest = Image.Resampling.NEAREST
    distorted: Image.Image = NAME_TO_OP[name](image, *values, resample=nearest, fillcolor=(0,) * 3)
    return distorted


def read_policy(text: str) -> Policy:
    """A policy by its name.

    ``rand-m7-n2-mstd0.5-inc1`` and ``original-mstd0.5`` are read by timm's functions
    (``timm.data.auto_augment``); ``trivial_augment_wide`` is torchvision's.

    Raises:
        UserError: there is no such policy.
    """
    from timm.data import auto_augment as timm

    if text == "trivial_augment_wide":
        return TrivialAugmentWide()
    problem = UserError(
        f"augment.policy={text} is not known: give one like rand-m7-n2-mstd0.5-inc1 or"
        " original-mstd0.5, as timm reads them, or trivial_augment_wide."
    )
    try:
        if text.startswith("rand"):
            read = timm.rand_augment_transform(text, {})
            if read.choice_weights is not None:
                raise problem
            policy: Policy = RandAugment(tuple(map(_operation, read.ops)), read.num_layers)
        else:
            sequences = timm.auto_augment_transform(text, {}).policy
            policy = AutoAugment(tuple(tuple(map(_operation, ops)) for ops in sequences))
    except (AssertionError, KeyError, ValueError) as error:
        raise problem from error
    return policy


def _operation(read: Any) -> Operation:
    """What timm made of a policy's text."""
    deviation = read.magnitude_std
    if math.isinf(deviation):
        raise ValueError("uniform magnitudes")
    largest = read.magnitude_max or 10.0
    _values(read.name, largest, 1.0)  # raises where it is not known
    return Operation(read.name, read.prob, read.magnitude, deviation, largest)


@dataclass(frozen=True)
class Augmentation:
    """Done to a training image after its crop: a policy, and a rectangle erased.

    Attributes:
        erasing: how often (Zhong et al., 2020); the rectangle is as in torchvision's RandomErasing.
        fill: the colour of what is erased or comes in from outside, from 0 to 255.
    """

    policy: Policy | None
    erasing: float
    fill: tuple[int, int, int]

    @property
    def draws(self) -> int:
        """Numbers for an image."""
        return self._policy_draws + (_ERASING_DRAWS if self.erasing else 0)

    @property
    def _policy_draws(self) -> int:
        return 0 if self.policy is None else self.policy.draws

    def __call__(self, image: Tensor, numbers: Numbers) -> Tensor:
        """uint8 (H, W, 3) to the same."""
        if self.policy is not None:
            picture = Image.fromarray(image.numpy())
            picture = self.policy(picture, numbers[: self._policy_draws], self.fill)
            image = torch.from_numpy(np.array(picture))
        if self.erasing and numbers[self._policy_draws] < self.erasing:
            image = self._erased(image, numbers[self._policy_draws + 1 :])
        return image

    def _erased(self, image: Tensor, numbers: Numbers) -> Tensor:
        height, width = image.shape[:2]
        low, high = (math.log(ratio) for ratio in _ERASED_RATIO)
        for trial in range(10):
            area, shape, down, across = numbers[4 * trial : 4 * trial + 4]
            pixels = height * width * (_ERASED_AREA[0] + area * (_ERASED_AREA[1] - _ERASED_AREA[0]))
            ratio = math.exp(low + shape * (high - low))
            rows, columns = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if rows < height and columns < width:
                top, left = int(down * (height - rows + 1)), int(across * (width - columns + 1))
                image = image.clone()
                image[top : top + rows, left : left + columns] = torch.tensor(
                    self.fill, dtype=torch.uint8
                )
                return image
        return image
