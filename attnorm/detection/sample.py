"""One image of a data set as the network gets it: read, decoded, mirrored, resized, and marked."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from attnorm.config import CocoConfig
from attnorm.data.decode import BrokenImageError, decode_rgb
from attnorm.data.source import printable
from attnorm.detection.batch import InstanceMasks, Size
from attnorm.detection.coco import CocoData, TrainingView
from attnorm.detection.masks import IGNORED, instance_masks, semantic_from_map, semantic_things
from attnorm.detection.plan import Augmentation
from attnorm.detection.transform import Geometry, resized_size

THINGS = "things"  # data.semantic for maps made of the instances

_NOTHING = np.zeros(0, dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class Sample:
    """An image and its M objects, in pixels of the network's input.

    Attributes:
        pixels: uint8 (h, w, 3).
        size: h and w.
        original_size: height and width of the file.
        has_targets: whether what follows is of it.
        boxes: float32 (M, 4): x0, y0, x1, y1.
        labels: int64 (M,).
        masks, windows: as in InstanceMasks.
        semantic: uint8 (h / 8, w / 8), or None.
    """

    image_id: int
    pixels: NDArray[np.uint8]
    size: Size
    original_size: Size
    has_targets: bool = False
    boxes: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    masks: NDArray[np.uint8] = field(default_factory=lambda: _NOTHING)
    windows: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    semantic: NDArray[np.uint8] | None = None

    def without_pixels(self) -> Sample:
        """What is small of it."""
        return replace(self, pixels=_NOTHING, masks=_NOTHING, semantic=None)


@dataclass(frozen=True, eq=False)
class EvaluationSamples:
    """All images of a data set, without targets."""

    data: CocoData
    config: CocoConfig
    skips_broken: bool = False  # an evaluation is of every image

    def __len__(self) -> int:
        return len(self.data)

    def path(self, number: int) -> Path:
        return self.data.path(number)

    def load(self, epoch: int, number: int) -> Sample:
        """Image ``number``, the same in every epoch.

        Raises:
            BrokenImageError: it does not decode, or has another size than its annotations say.
        """
        original = self.data.size(number)
        size = resized_size(original, self.config.val_size, self.config.max_size)
        return _sample(self.data, number, Geometry(original, size))


@dataclass(frozen=True, eq=False)
class TrainingSamples:
    """Images to train on, with their objects.

    ``semantic_classes`` is what semantic maps of files may name: 0 to one less.
    """

    view: TrainingView
    config: CocoConfig
    augmentation: Augmentation
    semantic_classes: int = IGNORED

    @property
    def data(self) -> CocoData:
        return self.view.data

    @property
    def skips_broken(self) -> bool:
        return self.config.skip_broken

    def __len__(self) -> int:
        return len(self.view)

    def path(self, number: int) -> Path:
        return self.data.path(int(self.view.images[number]))

    def load(self, epoch: int, number: int) -> Sample:
        """The image ``view.images[number]`` as it is in an epoch.

        Raises:
            BrokenImageError: it or its semantic map cannot be used.
        """
        view, data = self.view, self.data
        index = int(view.images[number])
        flips, sides = self.augmentation.draw(epoch, view.images[number : number + 1])
        original = data.size(index)
        size = resized_size(original, int(sides[0]), self.config.max_size)
        geometry = Geometry(original, size, bool(flips[0]))
        sample = _sample(data, index, geometry)
        own = slice(int(view.offsets[number]), int(view.offsets[number + 1]))
        objects = view.objects[own]
        masks = instance_masks(data.segmentations, objects.tolist(), geometry)
        return replace(
            sample,
            has_targets=True,
            boxes=geometry.boxes(view.boxes[own]).astype(np.float32),
            labels=data.labels[objects],
            masks=masks.pixels.numpy(),
            windows=masks.windows.numpy(),
            semantic=self._semantic(index, geometry, masks, data.labels[objects]),
        )

    def _semantic(
        self, index: int, geometry: Geometry, masks: InstanceMasks, labels: NDArray[np.int64]
    ) -> NDArray[np.uint8] | None:
        if self.config.semantic is None:
            return None
        data = self.data
        if self.config.semantic != THINGS:
            path = semantic_folder(data, self.config) / semantic_name(data, index)
            return semantic_from_map(
                read_map(path, geometry.original, self.semantic_classes), geometry
            )
        start, end = data.offsets[index : index + 2].tolist()
        crowds = start + np.flatnonzero(data.crowd[start:end])
        return semantic_things(
            masks,
            labels.tolist(),
            instance_masks(data.segmentations, crowds.tolist(), geometry),
            geometry.size,
        )


def semantic_folder(data: CocoData, config: CocoConfig) -> Path:
    """Of the maps of training images, such as ``stuffthingmaps/train2017`` under the root."""
    assert config.semantic is not None
    root = data.images_dir.parents[len(Path(config.train_images).parts) - 1]
    return root / config.semantic / config.train_images


def semantic_name(data: CocoData, index: int) -> str:
    """Of the map of an image: that of the image, with another ending."""
    return str(Path(data.name(index)).with_suffix(".png"))


def read_map(path: Path, size: Size, classes: int) -> NDArray[np.uint8]:
    """A picture whose pixels are classes, uint8 (H, W).

    Raises:
        BrokenImageError: it is another kind of picture, of another size than ``size``, or names
            more than so many ``classes`` (255 is none).
        OSError: it cannot be read.
    """
    name = f"its semantic map {printable(str(path))}"
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as opened:
            mode, labels = opened.mode, np.array(opened)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BrokenImageError(f"{name} is truncated, damaged or no picture") from error
    if mode not in ("L", "P"):
        raise BrokenImageError(f"{name} has colours of mode {mode}, not a class for each pixel")
    if labels.shape != size:
        shape = " × ".join(map(str, labels.shape))
        raise BrokenImageError(f"{name} is {shape} pixels, the image {size[0]} × {size[1]}")
    named = labels[labels != IGNORED]
    if named.size and int(named.max()) >= classes:
        raise BrokenImageError(
            f"{name} has class {named.max()}, but detector.semantic_classes={classes}"
        )
    return labels


def _sample(data: CocoData, index: int, geometry: Geometry) -> Sample:
    """An image without its objects."""
    image = decode_rgb(np.fromfile(data.path(index), dtype=np.uint8))
    if tuple(image.shape[:2]) != geometry.original:
        height, width = geometry.original
        raise BrokenImageError(
            f"it is {image.shape[0]} × {image.shape[1]} pixels high and wide, the annotations say"
            f" {height} × {width}"
        )
    pixels = geometry.pixels(image).numpy()
    return Sample(int(data.image_ids[index]), pixels, geometry.size, geometry.original)
