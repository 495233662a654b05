"""The groups ``data`` and ``loader``: which images, and how they become batches."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from attnorm.config.checks import require, require_choice


@dataclass
class DataConfig:
    """What data sets of every task have."""

    schema: str = "labelled_images"
    name: str = MISSING
    source: str = MISSING
    root: str | None = None
    num_classes: int | None = None
    horizontal_flip: bool = True
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    # Processes of the torch loader (0: none), threads of DALI; null: one per core that each process
    # of the run has, at most 8.
    workers: int | None = None
    # Put the next image in the place of one that cannot be decoded, instead of stopping.
    skip_broken: bool = False

    def __post_init__(self) -> None:
        for key, values in (("data.mean", self.mean), ("data.std", self.std)):
            require(len(values) == 3, key, values, "three numbers, one per colour channel")
        require(min(self.std) > 0, "data.std", self.std, "three positive numbers")
        known = self.workers is None or self.workers >= 0
        require(known, "data.workers", self.workers, "0 or more, or null for one per core")


@dataclass
class LabelledImagesConfig(DataConfig):
    """Images of one class each, and how one becomes a training or evaluation crop."""

    # folder: root/train/CLASS/* and root/val/CLASS/*; digits: built once from scikit-learn.
    source: str = "folder"
    # Of source=folder: folder, or the shards that scripts/make_shards.py makes of one.
    format: str = "folder"
    # Under root, with the class folders to evaluate on; "." where root itself has them.
    val_folder: str = "val"
    # Class folders are named by ILSVRC's numbers, 0 to 999, in place of WordNet ids.
    numbered_classes: bool = False
    image_size: int = 224
    # Short side before the centre crop of an evaluation image.
    resize_size: int = 256
    # Side of training images where it is another one (FixRes); null for image_size.
    train_size: int | None = None
    # What the side of training images grows to, in the shares of training that train_size_ramp
    # names; null: it does not.
    final_train_size: int | None = None
    train_size_ramp: list[float] = field(default_factory=lambda: [0.74, 0.86])
    # How images are resized, in training and in evaluation: bilinear or bicubic.
    interpolation: str = "bilinear"
    # Evaluate an image by the mean of its logits and its mirror image's.
    flip_tta: bool = False
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    # The size of the data set that loader=synthetic stands in for.
    num_train_images: int = 10_000
    num_val_images: int = 1_000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("data.source", self.source, ("folder", "digits"))
        formats = ("folder", "webdataset", "tfrecord") if self.source == "folder" else ("folder",)
        require_choice("data.format", self.format, formats)
        if self.num_classes is not None:
            require(self.num_classes >= 2, "data.num_classes", self.num_classes, "at least 2")
        require(self.image_size >= 1, "data.image_size", self.image_size, "at least 1")
        require(
            self.resize_size >= self.image_size,
            "data.resize_size",
            self.resize_size,
            f"at least data.image_size={self.image_size}",
        )
        require_choice("data.interpolation", self.interpolation, ("bilinear", "bicubic"))
        for key in ("train_size", "final_train_size"):
            size = getattr(self, key)
            require(size is None or size >= 1, f"data.{key}", size, "at least 1, or null")
        for key, low, high in (
            ("data.train_size_ramp", *self._pair("train_size_ramp")),
            ("data.crop_scale", *self._pair("crop_scale")),
            ("data.crop_ratio", *self._pair("crop_ratio")),
        ):
            require(0 < low <= high, key, [low, high], "a pair 0 < low <= high")
        ramp = self.train_size_ramp
        require(ramp[1] <= 1, "data.train_size_ramp", ramp, "shares of training, at most 1")
        require(self.crop_scale[1] <= 1, "data.crop_scale", self.crop_scale, "at most 1")
        for key in ("num_train_images", "num_val_images"):
            require(getattr(self, key) >= 1, f"data.{key}", getattr(self, key), "at least 1")

    def _pair(self, name: str) -> tuple[float, float]:
        values = getattr(self, name)
        require(len(values) == 2, f"data.{name}", values, "a pair of numbers, [low, high]")
        return values[0], values[1]


@dataclass
class CocoConfig(DataConfig):
    """Images with boxes, masks and classes, in the layout of COCO (Lin et al., 2014)."""

    schema: str = "coco"
    # coco: root with folders of images and annotations; digit_scenes: made once from the digits.
    source: str = "coco"
    # Under root.
    train_images: str = "train2017"
    train_annotations: str = "annotations/instances_train2017.json"
    val_images: str = "val2017"
    val_annotations: str = "annotations/instances_val2017.json"
    # Maps of the whole image for HTC: a folder under root (stuffthingmaps), "things" for maps made
    # from the instances, or null.
    semantic: str | None = None
    # Short side of an image in pixels, one of these at random in training, and the most that its
    # long side may have.
    train_sizes: list[int] = field(default_factory=lambda: [800])
    val_size: int = 800
    max_size: int = 1333
    # Batches are padded to a multiple of this many pixels.
    size_divisible: int = 32
    # Batches of wide images, or of high ones.
    aspect_groups: bool = True
    # Images with a shorter side are not trained on.
    min_side: int = 32
    # Who computes the AP: pycocotools, or hotcoco, which gives the same bits in less time.
    referee: str = "pycocotools"
    # Of source=digit_scenes.
    num_train_scenes: int = 1_000
    num_val_scenes: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("data.source", self.source, ("coco", "digit_scenes"))
        require_choice("data.referee", self.referee, ("pycocotools", "hotcoco"))
        sizes = self.train_sizes
        require(len(sizes) >= 1 and min(sizes) >= 1, "data.train_sizes", sizes, "sides in pixels")
        for key in ("val_size", "size_divisible", "min_side"):
            require(getattr(self, key) >= 1, f"data.{key}", getattr(self, key), "at least 1")
        for key in ("num_train_scenes", "num_val_scenes"):
            require(getattr(self, key) >= 1, f"data.{key}", getattr(self, key), "at least 1")
        largest = max(*sizes, self.val_size)
        require(self.max_size >= largest, "data.max_size", self.max_size, f"at least {largest}")


@dataclass
class LoaderConfig:
    name: str = MISSING
    # Batches decoded ahead (per worker process with torch).
    prefetch: int = 2
    # Images of an epoch of loader=synthetic; null for as many as the data set has.
    images: int | None = None
    # Import path of a loader of your own, under a name of its own (docs/extending.md).
    loader_class: str | None = None

    def __post_init__(self) -> None:
        if self.loader_class is None:
            require_choice("loader.name", self.name, ("auto", "dali", "torch", "synthetic"))
        require(self.prefetch >= 1, "loader.prefetch", self.prefetch, "at least 1")
        if self.images is not None:
            require(self.images >= 1, "loader.images", self.images, "at least 1")
