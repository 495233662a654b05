"""DALI on the GPU beside the torch loader: pixels, labels, memory that stays what it was, speed."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnorm.config import LabelledImagesConfig, LoaderConfig
from attnorm.data import build, dali
from attnorm.data.loader import Loader
from attnorm.distributed import Placement
from benchmarks.measure import seconds
from tests.gpu.report import Report, Setting

# Steps of 1/255, before normalization.
MOST_MEAN, MOST_OF_AN_IMAGE = 0.6, 2.5
DECODER_LOADS = (0.0, 0.5, 0.65, 0.8, 0.9, 1.0)


def run(setting: Setting, report: Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = setting.photos or write_photos(Path(folder), setting)
        report.figure("photographs", "made here" if setting.photos is None else str(root))
        for training in (True, False):
            same_pixels(root, training, setting, report)
        held_batches(root, setting, report)
        hardware_decoder(root, setting, report)


def write_photos(root: Path, setting: Setting) -> Path:
    """Smooth pictures with some noise, of many sizes: 3 classes, train/ and val/."""
    random = np.random.default_rng(0)
    least, most = (40, 100) if setting.small else (250, 700)
    for split, count in (("train", 12 if setting.small else 400), ("val", 5)):
        for name in ("ant", "bee", "cat"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                width, height = random.integers(least, most, 2)
                coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
                smooth = coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC)
                noise = random.integers(-10, 11, (int(height), int(width), 3))
                pixels = (np.asarray(smooth, dtype=np.int64) + noise).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
    return root


def loader(name: str, root: Path, training: bool, setting: Setting) -> Loader:
    """Of the recipe's sizes, in float32."""
    side, resize, batch = (32, 36, 6) if setting.small else (224, 256, 64)
    data = LabelledImagesConfig(
        name="folder", root=str(root), image_size=side, resize_size=resize, workers=2
    )
    arguments = (data, LoaderConfig(name=name), Placement(setting.device, batch))
    if training:
        return build.build_train_loader(*arguments, seed=0)
    return build.build_eval_loader(*arguments)


def batches(name: str, root: Path, training: bool, setting: Setting) -> list[tuple[Tensor, Tensor]]:
    """The first four of an epoch."""
    with closing(loader(name, root, training, setting)) as ours:
        epoch = ours.epoch(0)
        return [next(epoch) for _ in range(min(4, len(ours)))]


def same_pixels(root: Path, training: bool, setting: Setting, report: Report) -> None:
    """Mean absolute differences of images, and their labels."""
    deviation = 255 * torch.tensor(LabelledImagesConfig(name="folder").std, device=setting.device)
    worst, means = 0.0, []
    pairs = (batches(name, root, training, setting) for name in ("dali", "torch"))
    for (images, labels), (others, other_labels) in zip(*pairs, strict=True):
        report.require(torch.equal(labels, other_labels), f"labels differ, training={training}")
        each = ((images - others) * deviation.view(1, 3, 1, 1)).abs().mean((1, 2, 3))
        worst, means = max(worst, float(each.max())), [*means, float(each.mean())]
    what = "train" if training else "val"
    report.figure(f"{what}: mean difference of 255", sum(means) / len(means))
    report.figure(f"{what}: worst image's", worst)
    report.require(sum(means) / len(means) < MOST_MEAN, f"{what}: pixels differ in the mean")
    report.require(worst < MOST_OF_AN_IMAGE, f"{what}: pixels of an image differ")


def held_batches(root: Path, setting: Setting, report: Report) -> None:
    """Batches that are held while the GPU is late stay what they were."""
    with closing(loader("dali", root, True, setting)) as ours:
        epochs = [ours.epoch(0), ours.epoch(1)]
        if setting.on_gpu:
            torch.cuda._sleep(10**9)
        held = [images for epoch in epochs for images, _ in epoch][:16]
        sums = [images.double().sum() for images in held]
        for _ in ours.epoch(2):
            if setting.on_gpu:
                torch.cuda._sleep(10**8)
        now = [images.double().sum() for images in held]
    changed = sum(bool(one != other) for one, other in zip(sums, now, strict=True))
    report.figure("held batches that changed", changed)
    report.require(changed == 0, f"{changed} batches changed while they were held")


def hardware_decoder(root: Path, setting: Setting, report: Report) -> None:
    """Images per second by the share that the hardware decoder takes."""
    for load in DECODER_LOADS[:1] if setting.small else DECODER_LOADS:
        with (
            mock.patch.object(dali, "_HARDWARE_DECODER_LOAD", load),
            closing(loader("dali", root, True, setting)) as ours,
        ):
            for _ in ours.epoch(0):
                pass
            count = len(ours) * 2 * (6 if setting.small else 64)

            def two_epochs(ours: Loader = ours) -> None:
                for epoch in (1, 2):
                    for _ in ours.epoch(epoch):
                        pass

            report.speed(f"hw_decoder_load {load}, img/s", count / seconds(two_epochs))
