"""torchvision in worker processes: uint8 crops leave the workers, the device normalizes them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from attnorm.data.broken import Skipping
from attnorm.data.decode import BrokenImageError, Transform, decode_rgb
from attnorm.data.loader import Loader
from attnorm.data.normalize import PixelNormalization
from attnorm.data.sampling import Plan
from attnorm.data.source import ImageSource
from attnorm.data.worker_batches import Request, WorkerBatches, uninitialized_pixels
from attnorm.distributed import moved


@dataclass
class Answer:
    """A decoded batch: uint8 (N, H, W, 3), labels, and what happened to broken images.

    ``broken`` says what is wrong with which image, ``replaced`` how many others stand in.
    """

    images: Tensor
    labels: Tensor
    broken: dict[int, str] = field(default_factory=dict)
    replaced: int = 0

    def pin_memory(self) -> Answer:
        """The same in page-locked memory; the DataLoader's pinning thread calls this."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


class _Batches(Dataset[Answer]):
    """Decodes whole batches, so that a worker fills the batch's memory directly."""

    def __init__(self, source: ImageSource, transform: Transform, skip_broken: bool) -> None:
        self._source = source
        self._transform = transform
        self._skip_broken = skip_broken

    def __getitem__(self, request: Request) -> Answer:
        transform, count = self._transform.at(request.epoch), len(request.images)
        # Rows of pixels, three bytes each: what decoding gives, and channels_last for the device.
        shape = (count, transform.image_size, transform.image_size, 3)
        pixels = uninitialized_pixels(math.prod(shape)).view(shape)
        answer = Answer(pixels, torch.zeros(count, dtype=torch.int64))
        drawn = transform.draw(request.epoch, request.images) if transform.crop else None
        for slot, number in enumerate(request.images):
            found = self._decode(int(number) % len(self._source), answer)
            if found is None:
                break  # the main process stops the run at this answer
            index, image = found
            answer.images[slot] = (
                transform.random(image, drawn, slot) if drawn else transform.centre(image)
            )
            answer.labels[slot] = int(self._source.labels[index])
        return answer

    def _decode(self, wanted: int, answer: Answer) -> tuple[int, Tensor] | None:
        """The wanted image or, skipping, the next one that is whole; None where one has to stop."""
        for index in range(wanted, wanted + len(self._source)):
            index %= len(self._source)
            try:
                image = decode_rgb(self._source.read(index))
            except BrokenImageError as error:
                answer.broken[index] = str(error)
                if not self._skip_broken:
                    return None
                continue
            answer.replaced += int(index != wanted)
            return index, image
        return None


class TorchLoader(Loader):
    """Reads, decodes, crops and resizes in ``workers`` processes (0: in this one)."""

    name = "torch"

    def __init__(
        self,
        source: ImageSource,
        plan: Plan,
        transform: Transform,
        normalize: PixelNormalization,
        *,
        workers: int,
        prefetch: int,
        skip_broken: bool,
        reason: str = Loader.reason,
    ) -> None:
        self.reason, self.workers = reason, workers
        self.num_images = plan.num_images
        self._plan = plan
        self._skipping = Skipping(source, skip_broken)
        self._normalize = normalize
        self._answers = WorkerBatches(
            _Batches(source, transform, skip_broken),
            plan,
            workers=workers,
            prefetch=prefetch,
            pin_memory=normalize.device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self._plan)

    def _batches(self, epoch: int, start_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for answer in self._answers.epoch(epoch, start_batch):
            if answer.broken:
                self._skipping.report(answer.broken)
                self.skipped += answer.replaced
            labels = moved(answer.labels, self._normalize.device)
            yield self._normalize(answer.images), labels

    def remedies(self, cores: int) -> list[str]:
        """More workers while there are cores for them, or the loader that needs less of both."""
        return [*self._more_workers(cores), "use loader=dali"]

    def close(self) -> None:
        self._answers.close()
