"""From a config to a loader, and every check of the data that comes before a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from attnorm.config import AugmentConfig, LabelledImagesConfig, LoaderConfig
from attnorm.config.locate import locate
from attnorm.data.augment import read_policy
from attnorm.data.decode import Transform
from attnorm.data.digits import digits_root
from attnorm.data.fingerprint import fingerprint
from attnorm.data.folder import scan
from attnorm.data.imagenet_labels import synsets
from attnorm.data.loader import Loader
from attnorm.data.normalize import PixelNormalization
from attnorm.data.sampling import Plan
from attnorm.data.shards import read_shards
from attnorm.data.source import ImageSource
from attnorm.data.synthetic import SyntheticLoader
from attnorm.data.transforms import eval_transform, train_transform
from attnorm.data.workers import worker_count
from attnorm.distributed import Placement
from attnorm.errors import UserError

# Without data there is nothing to count; ImageNet's number of classes is as good as any.
_SYNTHETIC_CLASSES = 1000
_DALI_PACKAGES = "attnorm[cuda13] or attnorm[cuda12]"


def check(
    config: LabelledImagesConfig,
    loader: LoaderConfig,
    placement: Placement,
    *,
    training: bool = True,
    augment: AugmentConfig | None = None,
) -> None:
    """Refuse what cannot work, before anything else of a run exists.

    Args:
        training: both splits are needed; else ``val/`` alone.
        augment: of the training images.

    Raises:
        UserError: the loader is missing, or the data is missing, empty, inconsistent or too small.
    """
    if loader.loader_class is not None:
        _own_loader(loader.loader_class)
    else:
        choose(loader, placement.device, augment is not None and augment.distorts)
    if augment is not None and augment.policy is not None:
        read_policy(augment.policy)
    if loader.name != "synthetic":
        _splits(config, training)
    class_names(config, loader)
    if not training:
        return
    images = num_images(config, loader, training=True)
    share = images // placement.world_size
    if placement.batch_size > share:
        several = placement.world_size > 1
        processes = f" on each of {placement.world_size} processes" if several else ""
        raise UserError(
            f"batch_size={placement.batch_size}{processes} is more than the {images} training"
            f" images of data={config.name}: lower it to at most {share}."
        )


def num_classes(config: LabelledImagesConfig, loader: LoaderConfig) -> int:
    """``data.num_classes``, or as many as there are class folders."""
    return len(class_names(config, loader))


def class_names(config: LabelledImagesConfig, loader: LoaderConfig) -> list[str]:
    """The classes in the order of their labels: the class folders by name.

    Raises:
        UserError: their number is not ``data.num_classes``.
    """
    if loader.name == "synthetic":
        return [str(label) for label in range(config.num_classes or _SYNTHETIC_CLASSES)]
    classes = _splits(config, training=False)[-1].classes
    if config.num_classes not in (None, len(classes)):
        raise UserError(
            f"data.num_classes={config.num_classes}, but {_root(config)} has {len(classes)} class"
            f" folders: set data.num_classes={len(classes)} or give another data.root."
        )
    return list(classes)


def num_images(config: LabelledImagesConfig, loader: LoaderConfig, training: bool) -> int:
    """Images in the training set, or in the one for evaluation."""
    if loader.name == "synthetic":
        own = config.num_train_images if training else config.num_val_images
        return loader.images or own
    return len(_splits(config, training)[0 if training else -1])


def build_train_loader(
    config: LabelledImagesConfig,
    loader: LoaderConfig,
    placement: Placement,
    *,
    seed: int,
    augment: AugmentConfig | None = None,
    epochs: int = 1,
) -> Loader:
    """Augmented training images in a new order every epoch, whole batches only.

    Args:
        augment: what is done to single images beside cropping and mirroring; None for nothing.
        epochs: of the training, for ``data.final_train_size``.
    """
    augment = augment or AugmentConfig()
    images = None if loader.name == "synthetic" else _splits(config, training=True)[0]
    plan = Plan(
        num_images(config, loader, training=True),
        placement.batch_size,
        training=True,
        seed=seed,
        rank=placement.rank,
        world_size=placement.world_size,
        shards=images.shards if images else None,
        repeats=augment.repeats,
    )
    transform = train_transform(config, augment, seed=seed, epochs=epochs)
    return _build(config, loader, placement, images, plan, transform)


def build_eval_loader(
    config: LabelledImagesConfig,
    loader: LoaderConfig,
    placement: Placement,
    *,
    class_names: Sequence[str] | None = None,
    numbered: bool = False,
) -> Loader:
    """Central crops of ``val/``, every image once over all processes; ``train/`` is not needed.

    Args:
        numbered: labels are the images' own numbers, to look up what is known of them.
        class_names: the classes in the order of a model's outputs; those of ``train/`` if None,
            or of ``val/`` where there is no ``train/``.

    Raises:
        UserError: ``val/`` has a class that is not among ``class_names``.
    """
    plan = Plan(
        num_images(config, loader, training=False),
        placement.batch_size,
        training=False,
        rank=placement.rank,
        world_size=placement.world_size,
    )
    images = None
    if loader.name != "synthetic":
        images = _splits(config, training=False)[-1]
        if class_names is not None:
            images = images.with_classes(class_names)
        if numbered:
            images = images.numbered()
    return _build(config, loader, placement, images, plan, eval_transform(config))


def fingerprint_of(config: LabelledImagesConfig, loader: LoaderConfig) -> dict[str, Any]:
    """Of the training and the evaluation images; of synthetic ones nothing."""
    if loader.name == "synthetic":
        return {}
    train, val = _splits(config, training=True)
    root = _root(config)
    return {"train": fingerprint(train, root), "val": fingerprint(val, root)}


def eval_images(config: LabelledImagesConfig) -> ImageSource:
    """The images of ``val/``, for what is known of them by name.

    Raises:
        UserError: there are none.
    """
    return _splits(config, training=False)[-1]


def choose(loader: LoaderConfig, device: torch.device, distorts: bool = False) -> tuple[str, str]:
    """The loader to use, and why.

    Args:
        distorts: single images are distorted or erased, which is done in Python.

    Raises:
        UserError: ``loader=dali`` without DALI, or for what it does not do on a GPU.
    """
    installed = has_dali()
    if distorts and device.type == "cuda":
        if loader.name == "dali":
            raise UserError(
                "loader=dali decodes on the GPU, where augment.policy and augment.erasing do not"
                " exist (DALI's distortions are others): use loader=torch."
            )
        if loader.name == "auto":
            return "torch", "augment.policy and augment.erasing are done on the CPU"
    if loader.name == "dali" and not installed:
        raise UserError(
            f"loader=dali, but DALI is not installed: install {_DALI_PACKAGES},"
            " or use loader=torch."
        )
    if loader.name != "auto":
        return loader.name, Loader.reason
    if not installed:
        return "torch", f"DALI, which is faster, is not installed ({_DALI_PACKAGES})"
    if device.type == "cuda":
        return "dali", "it decodes, crops and normalizes on the GPU"
    return "dali", "it decodes only the crop, in threads: fastest here without a GPU too"


def has_dali() -> bool:
    """Whether NVIDIA DALI is installed."""
    # The name of a missing parent package would make find_spec raise.
    return bool(find_spec("nvidia")) and bool(find_spec("nvidia.dali"))


def _build(
    config: LabelledImagesConfig,
    loader: LoaderConfig,
    placement: Placement,
    images: ImageSource | None,
    plan: Plan,
    transform: Transform,
) -> Loader:
    target: dict[str, Any] = {
        "device": placement.device,
        "dtype": placement.dtype,
        "channels_last": placement.channels_last,
    }
    if images is None:
        classes = config.num_classes or _SYNTHETIC_CLASSES
        return SyntheticLoader(
            plan,
            image_size=lambda epoch: transform.at(epoch).image_size,
            num_classes=classes,
            **target,
        )
    distorts = transform.augmentation is not None
    return _constructor(loader, placement.device, distorts)(
        images,
        plan,
        transform,
        PixelNormalization(config.mean, config.std, **target),
        workers=worker_count(config.workers),
        prefetch=loader.prefetch,
        skip_broken=config.skip_broken,
    )


def _constructor(
    loader: LoaderConfig, device: torch.device, distorts: bool
) -> Callable[..., Loader]:
    """What builds the loader; ours know why they were chosen, a person's own were asked for."""
    if loader.loader_class is not None:
        return _own_loader(loader.loader_class)
    name, reason = choose(loader, device, distorts)
    # Imported here: DALI may be absent, and nobody should wait for a loader that is not used.
    if name == "dali":
        from attnorm.data.dali import DaliLoader

        return functools.partial(DaliLoader, reason=reason)
    from attnorm.data.torch_loader import TorchLoader

    return functools.partial(TorchLoader, reason=reason)


def _own_loader(path: str) -> Callable[..., Loader]:
    own = locate(path, "loader.loader_class")
    if not (isinstance(own, type) and issubclass(own, Loader)):
        raise UserError(
            f"loader.loader_class={path} is not a class derived from attnorm.data.loader.Loader."
        )
    return own


def _root(config: LabelledImagesConfig) -> Path:
    if config.source == "digits":
        return digits_root(config.root)
    if config.root is None:
        raise UserError(
            f"data={config.name} needs data.root=FOLDER, which holds train/CLASS/* and"
            " val/CLASS/* (or use loader=synthetic, which needs no images)."
        )
    return Path(config.root).expanduser().absolute()


def _splits(config: LabelledImagesConfig, training: bool) -> tuple[ImageSource, ...]:
    """(train, val), or val alone where ``train/`` is absent and not needed, on common labels."""
    root = _root(config)
    if not root.is_dir():
        raise UserError(f"data.root={root} is not a folder: give the one with train/ and val/.")
    val = config.val_folder
    wanted = ["train", val] if training or (root / "train").is_dir() else [val]
    for split in wanted:
        if not (root / split).is_dir():
            raise UserError(
                f"data.root={root} has no {split}/: images belong into train/CLASS/* and"
                f" {val}/CLASS/*."
            )
    scanned = [_scan_once(root / split, config.format) for split in wanted]
    if config.numbered_classes:
        scanned = [_named_by_synsets(images) for images in scanned]
    return (*scanned[:-1], scanned[-1].with_classes(scanned[0].classes))


def _named_by_synsets(images: ImageSource) -> ImageSource:
    names = synsets()
    unknown = [n for n in images.classes if not (n.isdecimal() and int(n) < len(names))]
    if unknown:
        raise UserError(
            f"data.numbered_classes=true: the class folder {unknown[0]} is not a number from 0 to"
            f" {len(names) - 1}."
        )
    return images.renamed([names[int(name)] for name in images.classes])


@functools.cache
def _scan_once(root: Path, format: str) -> ImageSource:
    """One split. Scanning a large one takes minutes, and several parts here ask for it."""
    return scan(root) if format == "folder" else read_shards(root, format)
