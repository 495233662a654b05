"""NVIDIA DALI: decoding, cropping and normalizing in one graph, on the GPU where there is one.

The graph holds no random state: numbers drawn in Python enter it with every batch, and the crop is
worked out inside from the size in the image's header. On the CPU resizing and normalizing are
torch's: it takes a fraction of the time that DALI takes there.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, math, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from attnorm.data.broken import Skipping
from attnorm.data.dali_graph import (
    FAILURES,
    as_float,
    boxes_in_numpy,
    boxes_in_the_graph,
    refused,
    size_of,
)
from attnorm.data.decode import BrokenImageError, Transform, decode_rgb
from attnorm.data.loader import Loader
from attnorm.data.normalize import PixelNormalization
from attnorm.data.sampling import Plan
from attnorm.data.source import ImageSource

# The share of a batch that the hardware JPEG decoder takes, where the GPU has one.
_HARDWARE_DECODER_LOAD = 0.65


class DaliLoader(Loader):
    """DALI with ``workers`` threads on the CPU (at least 1)."""

    name = "dali"

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
        resize_in_torch: bool | None = None,
    ) -> None:
        """
        Args:
            resize_in_torch: use torch's resize (on the CPU only), not DALI's own; None: on the CPU.
        """
        self.reason, self.workers = reason, workers
        self.num_images = plan.num_images
        self._on_gpu = normalize.device.type == "cuda"
        self._device_id = (normalize.device.index or 0) if self._on_gpu else None
        self._resize_in_torch = not self._on_gpu if resize_in_torch is None else resize_in_torch
        self._source, self._plan = source, plan
        self._every, self._transform = transform, transform.at(0)  # at the epoch that is made
        self._skipping = Skipping(source, skip_broken)
        self._replacements: dict[int, int] = {}
        self._normalize = normalize
        self._prefetch = prefetch
        self._num_threads = max(1, workers)
        self._threads = ThreadPoolExecutor(self._num_threads, "resize")
        self._made: deque[NDArray[np.float32]] = deque()  # by _in_torch, in the pipeline's order
        self._pending: Iterator[tuple[int, NDArray[np.int64]]] = iter(())
        self._pipeline: Pipeline | None = self._build()

    def __len__(self) -> int:
        return len(self._plan)

    def close(self) -> None:
        self._stop()
        self._threads.shutdown()

    def _stop(self) -> None:
        if self._pipeline is None:
            return
        self._drain(self._pipeline)
        # Nodes and pipeline refer to each other. Collected later, perhaps in one of the pipeline's
        # own threads, it could not wait for them to end.
        self._pipeline = None
        gc.collect()

    def _drain(self, pipeline: Pipeline) -> None:
        """Let the pipeline finish what it has begun, so that it is idle and has no batch left."""
        self._pending = iter(())
        for _ in range(self._prefetch + 1):
            try:
                pipeline.run()
            except StopIteration:
                break
            except FAILURES:  # it failed already, and does so again at every batch
                continue
        self._made.clear()

    def _batches(self, epoch: int, start_batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        if self._pipeline is None:
            raise RuntimeError("the loader was closed")
        planned = self._plan.batches(epoch, start_batch)
        self._resize(epoch)
        self._rewind(epoch, planned)
        done = 0
        while done < len(planned):
            wanted = self._replaced(planned[done])
            images = self._run()
            if isinstance(images, Exception):
                # What was decoded ahead is lost with the pipeline: begin again at this batch.
                self._stop()
                ahead = planned[done : done + self._prefetch + 1]
                self._replace_broken(np.concatenate(ahead), images)
                self._pipeline = self._build()
                self._rewind(epoch, planned[done:])
                continue
            self.skipped += int((wanted != self._images(planned[done])).sum())
            labels = torch.from_numpy(self._source.labels[wanted])
            done += 1
            yield images, labels.to(self._normalize.device, non_blocking=True)

    def _resize(self, epoch: int) -> None:
        """Build the graph anew if its images have another size in this epoch."""
        transform = self._every.at(epoch)
        if transform != self._transform:
            self._stop()
            self._transform = transform
            self._pipeline = self._build()

    def _rewind(self, epoch: int, planned: list[NDArray[np.int64]]) -> None:
        """Let the pipeline begin with ``planned``, dropping what an abandoned epoch left in it."""
        assert self._pipeline is not None
        self._drain(self._pipeline)
        self._pipeline.reset()
        self._pending = ((epoch, images) for images in planned)

    def _run(self) -> Tensor | Exception:
        """The next batch, or what went wrong (without its frames, which hold the pipeline)."""
        assert self._pipeline is not None
        try:
            with torch.cuda.device(self._normalize.device) if self._on_gpu else nullcontext():
                stream = torch.cuda.current_stream() if self._on_gpu else None
                (batch,) = self._pipeline.run(stream)
                images = self._taken_over(batch.as_tensor(), stream)
        except FAILURES as error:
            return error.with_traceback(None)
        if self._resize_in_torch:
            return self._normalize.finish(self._made.popleft())
        if self._normalize.channels_last:
            images = images.permute(0, 3, 1, 2)
        return images.to(self._normalize.dtype)

    def _taken_over(self, batch: Any, stream: torch.cuda.Stream | None) -> Tensor:
        """The batch as a tensor, on a GPU as a copy in torch's own memory.

        DALI waits for the whole device before it frees what was shared with torch, which spoils a
        CUDA graph that is being recorded and keeps a core busy; the copy is 1 % of a step.
        """
        if not self._on_gpu:
            return from_dlpack(batch)
        from nvidia.dali.plugin.pytorch import feed_ndarray, to_torch_type

        images = torch.empty(
            batch.shape(), dtype=to_torch_type[batch.dtype], device=self._normalize.device
        )
        copied: Tensor = feed_ndarray(batch, images, cuda_stream=stream)
        return copied

    def _images(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The images that the plan's numbers stand for."""
        return numbers % len(self._source)

    def _replaced(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Their images, with those known to be broken exchanged."""
        images = self._images(numbers)
        if not self._replacements:
            return images
        return np.array([self._replacements.get(int(index), int(index)) for index in images])

    def _replace_broken(self, images: NDArray[np.int64], cause: Exception) -> None:
        """Find what stopped the pipeline among ``images``, and whole images to take its place."""
        wanted = [int(index) for index in self._replaced(images)]
        # DALI's decoders refuse what torchvision's takes, such as a rare kind of JPEG on a GPU.
        for problems in (self._undecodable, self._refused):
            if self._replace(wanted, problems):
                return
        raise cause

    def _replace(self, images: list[int], problems: Callable[[list[int]], dict[int, str]]) -> bool:
        """Whether any of ``images`` had a problem; each of those has another in its place then."""
        broken = problems(images)
        self._skipping.report(broken)
        for index in broken:
            whole = (index + 1) % len(self._source)
            while problem := problems([whole]):
                self._skipping.report(problem)
                whole = (whole + 1) % len(self._source)
            self._replacements[index] = whole
        # Chains of replacements end at once: an earlier one may point at what is broken too.
        for index, whole in self._replacements.items():
            self._replacements[index] = self._replacements.get(whole, whole)
        return bool(broken)

    def _undecodable(self, images: list[int]) -> dict[int, str]:
        found = {}
        for index in images:
            try:
                decode_rgb(self._source.read(index))
            except BrokenImageError as error:
                found[index] = str(error)
        return found

    def _refused(self, images: list[int]) -> dict[int, str]:
        return refused(
            images,
            lambda index: self._encoded(np.array([index]))[0],
            lambda encoded: fn.decoders.image(self._read(encoded), **self._decoder()),
            self._device_id,
        )

    def _next_inputs(self) -> tuple[Any, ...]:
        """What the graph needs of the next batch; StopIteration after the last one."""
        epoch, planned = next(self._pending)
        images = self._replaced(planned)
        encoded = self._encoded(images)
        if self._transform.crop is None:
            return (encoded,)
        drawn = self._transform.draw(epoch, planned)
        inputs = (encoded, drawn.candidates, drawn.mirror.astype(np.int32))
        return inputs if self._transform.augmentation is None else (*inputs, drawn.augment)

    def _encoded(self, images: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Paths, which DALI reads itself, or the bytes of images that are parts of files."""
        if self._source.shards is not None:
            return list(self._threads.map(self._source.read, images))
        paths = (os.fsencode(self._source.path(int(index))) for index in images)
        return [np.frombuffer(path, dtype=np.uint8) for path in paths]

    def _build(self) -> Pipeline:
        pipeline = Pipeline(
            batch_size=self._plan.batch_size,
            num_threads=self._num_threads,
            device_id=self._device_id,
            prefetch_queue_depth=self._prefetch,
        )
        with pipeline:
            if self._transform.crop is None:
                (encoded,) = fn.external_source(self._next_inputs, num_outputs=1)
                images = self._centre(self._read(encoded))
            else:
                inputs = 3 if self._transform.augmentation is None else 4
                encoded, *drawn = fn.external_source(self._next_inputs, num_outputs=inputs)
                images = self._random(self._read(encoded), *drawn)
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline

    def _read(self, encoded: Any) -> Any:
        return encoded if self._source.shards is not None else fn.io.file.read(encoded)

    def _random(self, encoded: Any, candidates: Any, mirror: Any, *augment: Any) -> Any:
        assert self._transform.crop is not None
        boxes = boxes_in_numpy if self._resize_in_torch else boxes_in_the_graph
        corner, size = boxes(self._transform.crop, encoded, candidates)
        images = fn.decoders.image_slice(
            encoded, start=corner, shape=size, axis_names="HW", **self._decoder()
        )
        if self._resize_in_torch:
            return self._in_torch(self._transform.square, images, mirror, *augment)
        side = float(self._transform.image_size)
        images = fn.resize(images, size=[side, side], **self._resampling())
        return self._normalized(images, mirror=mirror)

    def _centre(self, encoded: Any) -> Any:
        images = fn.decoders.image(encoded, **self._decoder())
        if self._resize_in_torch:
            return self._in_torch(self._transform.centre, images)
        height, width = size_of(encoded)
        short = math.min(height, width)
        scaled = [
            math.floor(self._transform.resize_size * side / short) for side in (height, width)
        ]
        images = fn.resize(images, size=as_float(fn.stack(*scaled)), **self._resampling())
        side = self._transform.image_size
        return self._normalized(images, crop=[side, side], rounding="truncate")

    def _in_torch(self, function: Callable[..., Tensor], *inputs: Any) -> Any:
        """Apply ``function`` to each image (H, W, 3) and its other inputs, in threads.

        The normalized batch goes to ``self._made``, past DALI, which would copy it twice.
        """

        def make_all(*batch: list[Any]) -> list[Any]:
            rows = self._normalize.rows(len(batch[0]), self._transform.image_size)

            def make(target: NDArray[np.float32], *sample: Any) -> None:
                self._normalize.write(function(*map(from_dlpack, sample)), target)

            list(self._threads.map(make, rows, *batch))
            self._made.append(rows)
            return [torch.zeros(1).__dlpack__() for _ in rows]  # DALI wants an output

        return fn.dl_tensor_python_function(*inputs, function=make_all, batch_processing=True)

    def _resampling(self) -> dict[str, Any]:
        cubic = self._transform.interpolation == "bicubic"
        kind = types.INTERP_CUBIC if cubic else types.INTERP_LINEAR
        return {"interp_type": kind, "antialias": True}

    def _decoder(self) -> dict[str, Any]:
        common = {"output_type": types.RGB, "adjust_orientation": False}
        if not self._on_gpu:
            return {"device": "cpu", **common}
        return {
            "device": "mixed",
            "hw_decoder_load": _HARDWARE_DECODER_LOAD,
            "jpeg_fancy_upsampling": True,  # as libjpeg-turbo does, so both devices agree
            **common,
        }

    def _normalized(self, images: Any, **options: Any) -> Any:
        return fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT16 if self._normalize.dtype == torch.float16 else types.FLOAT,
            output_layout="HWC" if self._normalize.channels_last else "CHW",
            mean=[255 * value for value in self._normalize.mean],
            std=[255 * value for value in self._normalize.std],
            **options,
        )
