"""SPDL as a peer of the loaders: threads that decode with FFmpeg, where both are installed.

The same crops (an area of 8 – 100 %, a ratio of 3:4 – 4:3) and flips, which FFmpeg's filters do;
torch normalizes. Its parts and their names: facebookresearch.github.io/spdl, version 0.8 (``pip
install spdl-io spdl-core``, and FFmpeg's libraries).
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

Epoch = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


def spdl_epochs(
    photos: list[tuple[Path, int]], image_size: int, batch_size: int, workers: int
) -> Epoch | None:
    """What iterates over one epoch of (N, 3, H, W) float32 and labels; None without SPDL."""
    try:
        import spdl.io
        from spdl.pipeline import PipelineBuilder
    except ImportError:
        return None
    logging.getLogger("spdl").setLevel(logging.WARNING)  # it reports on every stage of every epoch
    values = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    mean, std = (torch.tensor(one)[:, None, None] * 255 for one in values)

    def decode(photo: tuple[Path, int]) -> tuple[Any, int]:
        path, label = photo
        packets = spdl.io.demux_image(str(path))
        filters = _filters(packets.codec.width, packets.codec.height, image_size)
        return spdl.io.decode_packets(packets, filter_desc=filters), label

    def batch(decoded: list[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
        frames, labels = zip(*decoded, strict=True)
        pixels = spdl.io.to_torch(spdl.io.convert_frames(list(frames))).permute(0, 3, 1, 2)
        return (pixels - mean) / std, torch.tensor(labels)

    def epoch(_: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = random.sample(photos, len(photos))
        pipeline = (
            PipelineBuilder()
            .add_source(order)
            .pipe(decode, concurrency=workers)
            .aggregate(batch_size, drop_last=True)
            .pipe(batch)
            .add_sink(2)
            .build(num_threads=workers)
        )
        with pipeline.auto_stop():
            yield from pipeline

    return epoch


def _filters(width: int, height: int, image_size: int) -> str:
    area = random.uniform(0.08, 1.0) * width * height
    ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
    w = max(1, min(width, round(math.sqrt(area * ratio))))
    h = max(1, min(height, round(math.sqrt(area / ratio))))
    x, y = random.randint(0, width - w), random.randint(0, height - h)
    mirror = "hflip," if random.random() < 0.5 else ""
    scale = f"scale={image_size}:{image_size}:flags=bilinear"
    return f"format=rgb24,crop={w}:{h}:{x}:{y}:exact=1,{scale},{mirror}format=rgb24"
