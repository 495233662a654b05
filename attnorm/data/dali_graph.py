"""Parts of DALI's graphs: where a crop lies, and which images its decoder takes."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, math, types

from attnorm.data.sampling import CROP_TRIALS, RandomCrop

# What a pipeline fails with; the second where its message names a path that is not UTF-8.
FAILURES = (RuntimeError, UnicodeDecodeError)


def size_of(encoded: Any) -> tuple[Any, Any]:
    """Height and width from the header, as float64 so that they divide exactly."""
    shape = fn.peek_image_shape(encoded, adjust_orientation=False)
    return fn.cast(shape[0], dtype=types.FLOAT64), fn.cast(shape[1], dtype=types.FLOAT64)


def _integers(*values: Any) -> Any:
    return fn.cast(fn.stack(*values), dtype=types.INT32)


def boxes_in_numpy(crop: RandomCrop, encoded: Any, candidates: Any) -> tuple[Any, Any]:
    """Corner and size (height, width) of each crop, by :meth:`RandomCrop.boxes`."""

    def boxes(shapes: list[Any], drawn: list[Any]) -> tuple[list[Any], list[Any]]:
        found = crop.boxes(np.stack(drawn), np.stack(shapes)[:, :2]).astype(np.int32)
        return list(found[:, :2]), list(found[:, 2:])

    shapes = fn.peek_image_shape(encoded, adjust_orientation=False)
    found: Any = fn.python_function(
        shapes, candidates, function=boxes, num_outputs=2, batch_processing=True
    )
    return found[0], found[1]


def boxes_in_the_graph(crop: RandomCrop, encoded: Any, candidates: Any) -> tuple[Any, Any]:
    """The same as graph nodes, which leave Python's lock to the thread that feeds the GPU."""
    height, width = size_of(encoded)
    root = math.sqrt(height * width)
    heights = math.floor(root * candidates[:, 0] + 0.5)
    widths = math.floor(root * candidates[:, 1] + 0.5)
    tops = math.floor(candidates[:, 2] * (height - heights + 1))
    lefts = math.floor(candidates[:, 3] * (width - widths + 1))
    # Whole numbers of pixels from here on, which float32 holds exactly: reductions want it.
    fits = as_float((heights > 0) & (heights <= height) & (widths > 0) & (widths <= width))
    # The first candidate that fits has the highest turn; without one, every turn is 0.
    turn = fits * np.arange(CROP_TRIALS, 0, -1, dtype=np.float32)
    best = fn.reductions.max(turn)
    first, none = fits * as_float(turn == best), as_float(best == 0)

    central_height = math.min(height, math.floor(width / crop.ratio[0] + 0.5))
    central_width = math.min(width, math.floor(height * crop.ratio[1] + 0.5))
    central_top = math.floor((height - central_height) / 2)
    central_left = math.floor((width - central_width) / 2)
    random = (tops, lefts, heights, widths)
    central = (central_top, central_left, central_height, central_width)
    top, left, crop_height, crop_width = (
        fn.reductions.sum(first * as_float(drawn)) + none * as_float(otherwise)
        for drawn, otherwise in zip(random, central, strict=True)
    )
    return _integers(top, left), _integers(crop_height, crop_width)


def as_float(value: Any) -> Any:
    return fn.cast(value, dtype=types.FLOAT)


def refused(
    images: Iterable[int],
    encoded: Callable[[int], NDArray[np.uint8]],
    decode: Callable[[Any], Any],
    device_id: int | None,
) -> dict[int, str]:
    """What DALI says of those ``images`` that it does not decode, one at a time.

    Args:
        encoded: an image's bytes, or its path's.
        decode: of these, in a graph.
    """
    found: dict[int, str] = {}
    left = deque(images)
    while left:
        pipeline = Pipeline(
            batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1
        )
        with pipeline:
            pipeline.set_outputs(decode(fn.external_source(name="encoded")))
        pipeline.build()
        while left:
            index = left.popleft()
            pipeline.feed_input("encoded", [encoded(index)])
            try:
                pipeline.run()
            except FAILURES as error:
                found[index] = _last_line(error)
                break  # a pipeline that has failed takes nothing more
        del pipeline
        gc.collect()  # nodes and pipeline refer to each other
    return found


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Stacktrace", "[frame", "Current pipe"))]
    return (said or [type(error).__name__])[-1][:200]
