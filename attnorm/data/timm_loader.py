"""timm's evaluation transform behind this project's interface, to compare errors with.

``eval.py loader=timm`` evaluates as timm's ``validate.py`` does: Pillow decodes, resizes and crops.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from attnorm.data.decode import Transform
from attnorm.data.loader import Loader
from attnorm.data.normalize import PixelNormalization
from attnorm.data.sampling import Plan
from attnorm.data.source import ImageSource, printable
from attnorm.errors import UserError


class TimmLoader(Loader):
    """Central crops by ``timm.data.create_transform``, in ``workers`` threads; not for training.

    Raises:
        UserError: there are crops to draw.
    """

    name = "timm"

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
    ) -> None:
        if transform.crop is not None:
            raise UserError(
                "loader=timm evaluates only, by timm's transform for it: train with loader=dali or"
                " loader=torch."
            )
        self.num_images, self.workers = plan.num_images, workers
        self._source, self._plan = source, plan
        self._device, self._dtype = normalize.device, normalize.dtype
        channels_last = normalize.channels_last
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        side = transform.image_size
        self._transform = create_transform(
            (3, side, side),
            is_training=False,
            interpolation=transform.interpolation,
            mean=normalize.mean,
            std=normalize.std,
            # timm resizes to floor(side / crop_pct): half a pixel more than it should be.
            crop_pct=side / (transform.resize_size + 0.5),
        )
        self._threads = ThreadPoolExecutor(max(1, workers))

    def __len__(self) -> int:
        return len(self._plan)

    def _batches(self, epoch: int, start_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for numbers in self._plan.batches(epoch, start_batch):
            images = torch.stack(list(self._threads.map(self._image, numbers.tolist())))
            labels = torch.from_numpy(self._source.labels[numbers])
            yield (
                images.to(self._device, self._dtype, memory_format=self._layout),
                labels.to(self._device),
            )

    def _image(self, index: int) -> Tensor:
        try:
            picture = Image.open(io.BytesIO(self._source.read(index).tobytes())).convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            path = printable(self._source.path(index))
            raise UserError(
                f"{path} cannot be decoded ({error}): loader=timm knows no data.skip_broken."
            ) from error
        image: Tensor = self._transform(picture)
        return image

    def close(self) -> None:
        self._threads.shutdown()
