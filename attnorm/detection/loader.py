"""COCO in worker processes: uint8 pixels and targets leave them, the device normalizes and pads."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from attnorm.config import CocoConfig
from attnorm.data.decode import BrokenImageError
from attnorm.data.loader import Loader
from attnorm.data.source import printable
from attnorm.data.worker_batches import (
    BatchPlan,
    Request,
    WorkerBatches,
    uninitialized_pixels,
)
from attnorm.data.workers import worker_count
from attnorm.detection.batch import DetectionBatch, InstanceMasks, Targets
from attnorm.detection.coco import CocoData, TrainingView, read_split, training_view
from attnorm.detection.masks import IGNORED, semantic_size
from attnorm.detection.plan import Augmentation, DetectionPlan, EvaluationPlan, aspect_groups
from attnorm.detection.sample import EvaluationSamples, Sample, TrainingSamples
from attnorm.detection.transform import PaddedNormalization, padded
from attnorm.distributed import Placement, moved
from attnorm.errors import UserError

logger = logging.getLogger(__name__)


def categories(config: CocoConfig) -> tuple[list[str], list[int]]:
    """Names and ids of the classes, in the order of labels 1, 2, …

    Raises:
        UserError: the training annotations cannot be had.
    """
    data = read_split(config, training=True)
    return list(data.category_names), data.category_ids.tolist()


def num_train_images(config: CocoConfig) -> int:
    """Images that hold something to train on."""
    return len(training_view(read_split(config, training=True), config.min_side))


def train_loader(
    config: CocoConfig,
    placement: Placement,
    *,
    seed: int,
    prefetch: int,
    semantic_classes: int = IGNORED,
) -> DetectionLoader:
    """Batches of ``placement.batch_size`` images with targets, in another order each epoch.

    Semantic maps of files may name ``semantic_classes``, from 0 on.

    Raises:
        UserError: the data cannot be had, or is too small for a batch.
    """
    view = training_view(read_split(config, training=True), config.min_side)
    sizes = view.data.sizes[view.images]
    plan = DetectionPlan(
        aspect_groups(sizes) if config.aspect_groups else np.zeros(len(view), dtype=np.int64),
        placement.batch_size,
        seed,
        placement.rank,
        placement.world_size,
    )
    if not len(plan):
        several = placement.world_size > 1
        processes = f" on each of {placement.world_size} processes" if several else ""
        raise UserError(
            f"batch_size={placement.batch_size}{processes} is more than the {len(view)} images of"
            f" {printable(str(view.data.annotations))} that hold something to train on: lower it to"
            f" at most {len(view) // placement.world_size}."
        )
    _log_what_is_left_out(view)
    augmentation = Augmentation(config.horizontal_flip, config.train_sizes, seed)
    samples = TrainingSamples(view, config, augmentation, semantic_classes)
    return DetectionLoader(samples, plan, config, placement, prefetch)


def eval_loader(config: CocoConfig, placement: Placement, *, prefetch: int) -> DetectionLoader:
    """Every validation image once over all processes, alone in its batch and without targets.

    So that padding, and with it what is found, does not depend on what else is in a batch.

    Raises:
        UserError: the data cannot be had.
    """
    data = read_split(config, training=False)
    plan = EvaluationPlan(len(data), placement.rank, placement.world_size)
    return DetectionLoader(EvaluationSamples(data, config), plan, config, placement, prefetch)


def _log_what_is_left_out(view: TrainingView) -> None:
    images = len(view.data) - len(view)
    objects = int(np.count_nonzero(~view.data.crowd)) - len(view.objects)
    if images or objects:
        logger.info(
            "not trained on: %d images without objects or too small, %d objects in such images or"
            " with less than a pixel",
            images,
            objects,
        )


class _Samples(Protocol):
    """Images by number; :attr:`skips_broken` says whether another may stand in for a broken one."""

    @property
    def data(self) -> CocoData: ...

    @property
    def skips_broken(self) -> bool: ...

    def __len__(self) -> int: ...

    def path(self, number: int) -> Path: ...

    def load(self, epoch: int, number: int) -> Sample: ...


@dataclass
class Answer:
    """What a worker makes of a batch.

    Pixels of images and of masks are one block each: every tensor that goes from one process to
    another costs a file descriptor.

    Attributes:
        pixels: uint8, images one after another, (h, w, 3) each.
        masks: uint8, windows of all instances one after another.
        samples: the images, without pixels.
        semantic: uint8 (N, H / 8, W / 8), or None.
        broken: by number of image, what is wrong with it.
        replaced: how many others stand in.
    """

    pixels: Tensor
    masks: Tensor
    samples: list[Sample]
    semantic: Tensor | None = None
    broken: dict[int, str] = field(default_factory=dict)
    replaced: int = 0

    def pin_memory(self) -> Answer:
        """The same in page-locked memory; the DataLoader's pinning thread calls this."""
        return replace(self, pixels=self.pixels.pin_memory(), masks=self.masks.pin_memory())


class _Batches(Dataset[Answer]):
    def __init__(self, samples: _Samples, divisible: int) -> None:
        self._samples, self._divisible = samples, divisible

    def __getitem__(self, request: Request) -> Answer:
        broken: dict[int, str] = {}
        found: list[Sample] = []
        replaced = 0
        for wanted in request.images.tolist():
            for number in range(wanted, wanted + len(self._samples)):
                number %= len(self._samples)
                try:
                    found.append(self._samples.load(request.epoch, number))
                    replaced += int(number != wanted)
                    break
                except BrokenImageError as error:
                    broken[number] = str(error)
                    if not self._samples.skips_broken:
                        break
        if not found or (broken and not self._samples.skips_broken):
            # The main process stops the run at this answer.
            return Answer(_together([]), _together([]), [], broken=broken)
        return Answer(
            _together([sample.pixels for sample in found]),
            _together([sample.masks for sample in found]),
            [sample.without_pixels() for sample in found],
            self._semantic(found),
            broken,
            replaced,
        )

    def _semantic(self, samples: Sequence[Sample]) -> Tensor | None:
        if samples[0].semantic is None:
            return None
        size = semantic_size(padded([sample.size for sample in samples], self._divisible))
        semantic = torch.full((len(samples), *size), IGNORED, dtype=torch.uint8)
        for sample, target in zip(samples, semantic, strict=True):
            assert sample.semantic is not None
            height, width = sample.semantic.shape
            target[:height, :width] = torch.from_numpy(sample.semantic)
        return semantic


class DetectionLoader(Loader):
    """Batches of images and what there is to find in them, from ``data.workers`` processes.

    Attributes:
        data: the data set that the images are of.
        referee: who computes the AP of what is found in them.
    """

    name = "torch"
    reason = "images of any size, with boxes and masks"

    def __init__(
        self,
        samples: _Samples,
        plan: BatchPlan,
        config: CocoConfig,
        placement: Placement,
        prefetch: int,
    ) -> None:
        self.data, self.num_images = samples.data, len(samples)
        self.workers = worker_count(config.workers)
        self._samples, self._plan = samples, plan
        self.referee = config.referee
        self._device = placement.device
        self._known_broken: set[int] = set()
        self._normalize = PaddedNormalization(
            config.mean,
            config.std,
            config.size_divisible,
            device=placement.device,
            dtype=placement.dtype,
            memory_format=placement.memory_format,
        )
        self._answers = WorkerBatches(
            _Batches(samples, config.size_divisible),
            plan,
            workers=self.workers,
            prefetch=prefetch,
            pin_memory=placement.device.type == "cuda",
        )

    @property
    def annotations(self) -> Path:
        """The file that the images' objects are annotated in."""
        return self.data.annotations

    def __len__(self) -> int:
        return len(self._plan)

    def _batches(self, epoch: int, start_batch: int) -> Iterator[Any]:
        for answer in self._answers.epoch(epoch, start_batch):
            self._report(answer.broken)
            self.skipped += answer.replaced
            yield self._batch(answer)

    def _report(self, broken: Mapping[int, str]) -> None:
        """Name each of the ``broken`` images in the log once, or stop at the first."""
        for number, problem in broken.items():
            path = printable(str(self._samples.path(number)))
            if not self._samples.skips_broken:
                raise UserError(
                    f"{path} cannot be used ({problem}).\nReplace the file, or take the image out"
                    f" of {printable(str(self.annotations))}; data.skip_broken=true puts another in"
                    " its place while training."
                )
            if number not in self._known_broken:
                logger.warning("skipping %s: it cannot be used (%s)", path, problem)
            self._known_broken.add(number)
        if len(self._known_broken) == len(self._samples):
            raise UserError("None of the images can be decoded.")

    def _batch(self, answer: Answer) -> DetectionBatch:
        sizes = [sample.size for sample in answer.samples]
        semantic = answer.semantic
        return DetectionBatch(
            images=self._normalize(answer.pixels, sizes),
            sizes=sizes,
            original_sizes=[sample.original_size for sample in answer.samples],
            image_ids=[sample.image_id for sample in answer.samples],
            targets=self._targets(answer) if answer.samples[0].has_targets else None,
            semantic=None if semantic is None else semantic.to(self._device).long(),
        )

    def _targets(self, answer: Answer) -> list[Targets]:
        """Copied to the device together, however many images and objects there are."""
        samples = answer.samples
        counts = [len(sample.labels) for sample in samples]
        boxes = torch.from_numpy(np.concatenate([sample.boxes for sample in samples]))
        labels = torch.from_numpy(np.concatenate([sample.labels for sample in samples]))
        windows = torch.from_numpy(np.concatenate([sample.windows for sample in samples]))
        areas = (windows[:, 2:] - windows[:, :2]).prod(1)
        pixels = [int(part.sum()) for part in areas.split(counts)]
        masks = map(
            InstanceMasks,
            moved(answer.masks, self._device).split(pixels),
            windows.split(counts),
        )
        return list(
            map(
                Targets,
                moved(boxes, self._device).split(counts),
                moved(labels, self._device).split(counts),
                masks,
            )
        )

    def close(self) -> None:
        self._answers.close()


def _together(parts: Sequence[NDArray[np.uint8]]) -> Tensor:
    """All of the ``parts`` in a row."""
    whole = uninitialized_pixels(sum(part.size for part in parts))
    if len(whole):  # with NumPy, which takes no threads from others
        np.concatenate([part.reshape(-1) for part in parts], out=whole.numpy())
    return whole
