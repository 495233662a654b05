"""torchvision in worker processes: uint8 crops leave the workers, the device normalizes them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from attnorm.data.broken import Skipping
from attnorm.data.decode import BrokenImageError, Transform, decode_rgb
from attnorm.data.loader import Loader
from attnorm.data.normalize import PixelNormalization
from attnorm.data.sampling import Plan
from attnorm.data.source import ImageSource
from attnorm.data.workers import nothing_to_collect

_SECONDS_TO_SIGNAL = 2.0


@dataclass(frozen=True)
class Request:
    """One batch to decode."""

    epoch: int
    images: NDArray[np.int64]


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
        transform, count = self._transform, len(request.images)
        # Rows of pixels, three bytes each: what decoding gives, and channels_last for the device.
        shape = (count, transform.image_size, transform.image_size, 3)
        answer = Answer(_pixels(shape), torch.zeros(count, dtype=torch.int64))
        drawn = transform.crop.draw(request.epoch, request.images) if transform.crop else None
        for slot, wanted in enumerate(request.images):
            found = self._decode(int(wanted), answer)
            if found is None:
                break  # the main process stops the run at this answer
            index, image = found
            square = (
                transform.random(image, drawn[0][slot], bool(drawn[1][slot]))
                if drawn
                else transform.centre(image)
            )
            answer.images[slot] = square
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


class _Requests(Sampler[Request]):
    """The batches from the position that is set on it to the end of the epoch."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.epoch = 0
        self.start_batch = 0

    def __len__(self) -> int:
        return len(self._plan) - self.start_batch

    def __iter__(self) -> Iterator[Request]:
        for images in self._plan.batches(self.epoch, self.start_batch):
            yield Request(self.epoch, images)


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
        self._requests = _Requests(plan)
        self._normalize = normalize
        self._batches_of: DataLoader[Answer] | None = DataLoader(
            _Batches(source, transform, skip_broken),
            batch_size=None,
            sampler=self._requests,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            pin_memory=normalize.device.type == "cuda",
            # Every start of the workers draws a seed. From torch's own generator it would shift
            # what a model draws, in a run that is continued in the middle of an epoch.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._plan)

    def _batches(self, epoch: int, start_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        if self._batches_of is None:
            raise RuntimeError("the loader was closed")
        self._requests.epoch, self._requests.start_batch = epoch, start_batch
        try:
            for answer in self._answers(self._batches_of):
                if answer.broken:
                    self._skipping.report(answer.broken)
                    self.skipped += answer.replaced
                labels = answer.labels.to(self._normalize.device, non_blocking=True)
                yield self._normalize(answer.images), labels
        except (ConnectionError, EOFError) as error:
            # A worker ended before it handed over the memory of a batch. The signal that says so
            # makes torch raise an error which names it: here, and not in whatever comes next.
            time.sleep(_SECONDS_TO_SIGNAL)
            raise RuntimeError(f"DataLoader worker no longer answers ({error}).") from error

    def remedies(self, cores: int) -> list[str]:
        """More workers while there are cores for them, or the loader that needs less of both."""
        return [*self._more_workers(cores), "use loader=dali"]

    @staticmethod
    def _answers(batches: DataLoader[Answer]) -> Iterator[Answer]:
        """The workers' answers. No frame here is left holding the iterator after an exception:

        it would be collected with a traceback, some time, and then not end its workers well.
        """
        with nothing_to_collect():  # the workers start here
            return iter(batches)

    def close(self) -> None:
        # The workers end with the last reference to their DataLoader.
        self._batches_of = None


def _pixels(shape: tuple[int, ...]) -> Tensor:
    """Uninitialized uint8; in a worker, in memory that the main process sees.

    Otherwise the batch would be copied there, and the freed copies would let the worker's heap grow
    (the C library rarely reuses large aligned blocks).
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    shared = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(shared).view(shape)


def _as_it_is(answer: Any) -> Any:
    return answer
