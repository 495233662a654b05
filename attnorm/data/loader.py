"""What every loader is: an endless supply of epochs, any of them from any batch on.

Nothing random has a hidden state, so a loader sent back to a position repeats itself exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from attnorm.errors import UserError


class Loader(ABC):
    """Batches of (images, labels), already on the device.

    Images are (N, 3, image_size, image_size), normalized; labels are int64 of shape (N,).

    Attributes:
        name: dali, torch or synthetic.
        reason: why this loader, in one line.
        num_images: images in the whole data set, over all processes.
        workers: ``data.workers``, where more of them would help.
        skipped: broken images that were replaced since the loader was built.
    """

    name: str
    reason: str = "asked for"
    num_images: int
    workers: int | None = None
    skipped: int = 0

    @abstractmethod
    def __len__(self) -> int:
        """Batches per epoch of this process."""

    @abstractmethod
    def _batches(self, epoch: int, start_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of ``epoch`` from ``start_batch`` on."""

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from ``start_batch`` on.

        The same arguments give the same images, crops and labels, pixel for pixel.

        Raises:
            UserError: an image cannot be read, or not decoded while ``data.skip_broken`` is off, or
                a worker process died.
        """
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch={start_batch} of an epoch of {len(self)} batches")
        batches = self._batches(epoch, start_batch)
        for _ in range(start_batch, len(self)):
            with _explained_failures():
                pair = next(batches)
            yield pair

    def remedies(self, cores: int) -> list[str]:
        """What a person can do, one thing or another, if the model waits for this loader.

        Args:
            cores: CPU cores for each process.
        """
        hardware = "give it more CPU cores, or a faster disk than that of data.root"
        return self._more_workers(cores) or [hardware]

    def _more_workers(self, cores: int) -> list[str]:
        if self.workers is None or self.workers >= cores:
            return []
        return [f"raise data.workers={self.workers} ({cores} cores for each process)"]

    def close(self) -> None:  # noqa: B027 - a loader without processes or pipelines has nothing
        """Stop worker processes and pipelines. The loader yields nothing afterwards."""


@contextmanager
def _explained_failures() -> Iterator[None]:
    """Say what a person can do about images that cannot be read and workers that die."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"An image cannot be read ({str(error).strip().splitlines()[-1]}).\n"
            "Make data.root readable again; the same command then continues from the last"
            " checkpoint."
        ) from error
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise UserError(
            f"{str(error).splitlines()[0]} A worker that is killed has usually run out of memory:"
            " lower data.workers or loader.prefetch, then start the same command to continue."
        ) from error
