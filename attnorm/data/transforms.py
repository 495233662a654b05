"""From a config to what becomes of an image, in training and in evaluation."""

from __future__ import annotations

from dataclasses import replace

from attnorm.config import AugmentConfig, LabelledImagesConfig
from attnorm.data.augment import Augmentation, read_policy
from attnorm.data.decode import TrainSize, Transform
from attnorm.data.sampling import RandomCrop


def eval_transform(config: LabelledImagesConfig) -> Transform:
    """The central crop."""
    return Transform(
        config.image_size, config.resize_size, crop=None, interpolation=config.interpolation
    )


def train_transform(
    config: LabelledImagesConfig, augment: AugmentConfig, *, seed: int, epochs: int
) -> Transform:
    """A random crop, mirrored or not, of a size that may grow over ``epochs``, and augmented.

    Raises:
        UserError: there is no such policy.
    """
    crop = RandomCrop(
        scale=(config.crop_scale[0], config.crop_scale[1]),
        ratio=(config.crop_ratio[0], config.crop_ratio[1]),
        flip=config.horizontal_flip,
        seed=seed,
    )
    return replace(
        eval_transform(config),
        crop=crop,
        train_size=_train_size(config, epochs),
        augmentation=_augmentation(config, augment),
    )


def _train_size(config: LabelledImagesConfig, epochs: int) -> TrainSize | None:
    if config.train_size is None and config.final_train_size is None:
        return None
    first = config.train_size or config.image_size
    last = config.final_train_size or first
    start, end = (share * epochs for share in config.train_size_ramp)
    return TrainSize(first, last, start, end)


def _augmentation(config: LabelledImagesConfig, augment: AugmentConfig) -> Augmentation | None:
    if not augment.distorts:
        return None
    policy = read_policy(augment.policy) if augment.policy is not None else None
    red, green, blue = (min(255, round(255 * mean)) for mean in config.mean)
    return Augmentation(policy, augment.erasing, (red, green, blue))
