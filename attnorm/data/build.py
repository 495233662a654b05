"""From a config to a loader, and every check of the data that comes before a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from hydra.utils import get_class

from attnorm.config import DataConfig, LoaderConfig
from attnorm.data.decode import Transform
from attnorm.data.digits import digits_root
from attnorm.data.folder import scan
from attnorm.data.loader import Loader
from attnorm.data.sampling import Plan, RandomCrop
from attnorm.data.shards import read_shards
from attnorm.data.source import ImageSource
from attnorm.data.synthetic import SyntheticLoader
from attnorm.errors import UserError

# Without data there is nothing to count; ImageNet's number of classes is as good as any.
_SYNTHETIC_CLASSES = 1000
_DALI_PACKAGES = "attnorm[cuda13] or attnorm[cuda12]"


def check(
    config: DataConfig,
    loader: LoaderConfig,
    *,
    batch_size: int,
    world_size: int,
    training: bool = True,
) -> None:
    """Refuse what cannot work, before anything else of a run exists.

    Args:
        batch_size: images per process and step.
        training: both splits are needed; else ``val/`` alone.

    Raises:
        UserError: DALI is missing, or the data is missing, empty, inconsistent or too small.
    """
    choose(config, loader, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if loader.name != "synthetic":
        _splits(config, training)
    class_names(config, loader)
    if not training:
        return
    images = num_images(config, loader, training=True)
    if batch_size * world_size > images:
        processes = f" on each of {world_size} processes" if world_size > 1 else ""
        raise UserError(
            f"batch_size={batch_size}{processes} is more than the {images} training images of"
            f" data={config.name}: lower it to at most {images // world_size}."
        )


def num_classes(config: DataConfig, loader: LoaderConfig) -> int:
    """``data.num_classes``, or as many as there are class folders."""
    return len(class_names(config, loader))


def class_names(config: DataConfig, loader: LoaderConfig) -> list[str]:
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


def num_images(config: DataConfig, loader: LoaderConfig, training: bool) -> int:
    """Images in the training set, or in the one for evaluation."""
    if loader.name == "synthetic":
        own = config.num_train_images if training else config.num_val_images
        return loader.images or own
    return len(_splits(config, training)[0 if training else -1])


def build_train_loader(
    config: DataConfig,
    loader: LoaderConfig,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Augmented training images in a new order every epoch, whole batches only."""
    images = None if loader.name == "synthetic" else _splits(config, training=True)[0]
    plan = Plan(
        num_images(config, loader, training=True),
        batch_size,
        training=True,
        seed=seed,
        rank=rank,
        world_size=world_size,
        shards=images.shards if images else None,
    )
    crop = RandomCrop(
        scale=(config.crop_scale[0], config.crop_scale[1]),
        ratio=(config.crop_ratio[0], config.crop_ratio[1]),
        flip=config.horizontal_flip,
        seed=seed,
    )
    return _build(config, loader, images, plan, crop, device, dtype, channels_last)


def build_eval_loader(
    config: DataConfig,
    loader: LoaderConfig,
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
    rank: int = 0,
    world_size: int = 1,
    class_names: Sequence[str] | None = None,
) -> Loader:
    """Central crops of ``val/``, every image once over all processes; ``train/`` is not needed.

    Args:
        class_names: the classes in the order of a model's outputs; those of ``train/`` if None,
            or of ``val/`` where there is no ``train/``.

    Raises:
        UserError: ``val/`` has a class that is not among ``class_names``.
    """
    plan = Plan(
        num_images(config, loader, training=False),
        batch_size,
        training=False,
        rank=rank,
        world_size=world_size,
    )
    images = None
    if loader.name != "synthetic":
        images = _splits(config, training=False)[-1]
        if class_names is not None:
            images = images.with_classes(class_names)
    return _build(config, loader, images, plan, None, device, dtype, channels_last)


def choose(config: DataConfig, loader: LoaderConfig, device: torch.device) -> tuple[str, str]:
    """The loader to use, and why.

    Raises:
        UserError: ``loader=dali`` without DALI.
    """
    has_dali = _has_dali()
    if loader.name == "dali" and not has_dali:
        raise UserError(
            f"loader=dali, but DALI is not installed: install {_DALI_PACKAGES},"
            " or use loader=torch."
        )
    if loader.name != "auto":
        return loader.name, "asked for"
    if not has_dali:
        return "torch", f"DALI, which is faster, is not installed ({_DALI_PACKAGES})"
    if device.type == "cuda":
        return "dali", "it decodes, crops and normalizes on the GPU"
    return "dali", "it decodes only the crop, in threads: fastest here without a GPU too"


def _has_dali() -> bool:
    # The name of a missing parent package would make find_spec raise.
    return bool(find_spec("nvidia")) and bool(find_spec("nvidia.dali"))


def _build(
    config: DataConfig,
    loader: LoaderConfig,
    images: ImageSource | None,
    plan: Plan,
    crop: RandomCrop | None,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool,
) -> Loader:
    name, reason = choose(config, loader, device)
    if images is None:
        return SyntheticLoader(
            plan,
            image_size=config.image_size,
            num_classes=config.num_classes or _SYNTHETIC_CLASSES,
            device=device,
            dtype=dtype,
            channels_last=channels_last,
        )
    transform = Transform(config.image_size, config.resize_size, crop)
    # Imported here: DALI may be absent, and nobody should wait for a loader that is not used.
    chosen: Callable[..., Loader]
    if loader.loader_class is not None:
        chosen = _own_loader(loader.loader_class)
    elif name == "dali":
        from attnorm.data.dali import DaliLoader

        chosen = DaliLoader
    else:
        from attnorm.data.torch_loader import TorchLoader

        chosen = TorchLoader
    built = chosen(
        images,
        plan,
        transform,
        mean=config.mean,
        std=config.std,
        device=device,
        dtype=dtype,
        channels_last=channels_last,
        workers=config.workers,
        prefetch=loader.prefetch,
        skip_broken=config.skip_broken,
    )
    built.reason = reason
    return built


def _own_loader(path: str) -> Callable[..., Loader]:
    try:
        own: Callable[..., Loader] = get_class(path)
    except (ImportError, ValueError) as error:
        raise UserError(f"loader.loader_class={path} cannot be imported: {error}") from error
    return own


def _root(config: DataConfig) -> Path:
    if config.source == "digits":
        return digits_root(config.root)
    if config.root is None:
        raise UserError(
            f"data={config.name} needs data.root=FOLDER, which holds train/CLASS/* and"
            " val/CLASS/* (or use loader=synthetic, which needs no images)."
        )
    return Path(config.root).expanduser().absolute()


def _splits(config: DataConfig, training: bool) -> tuple[ImageSource, ...]:
    """(train, val), or val alone where ``train/`` is absent and not needed, on common labels."""
    root = _root(config)
    if not root.is_dir():
        raise UserError(f"data.root={root} is not a folder: give the one with train/ and val/.")
    wanted = ["train", "val"] if training or (root / "train").is_dir() else ["val"]
    for split in wanted:
        if not (root / split).is_dir():
            raise UserError(
                f"data.root={root} has no {split}/: images belong into train/CLASS/* and"
                " val/CLASS/*."
            )
    scanned = [_scan_once(root / split, config.format) for split in wanted]
    return (*scanned[:-1], scanned[-1].with_classes(scanned[0].classes))


@functools.cache
def _scan_once(root: Path, format: str) -> ImageSource:
    """One split. Scanning a large one takes minutes, and several parts here ask for it."""
    return scan(root) if format == "folder" else read_shards(root, format)
