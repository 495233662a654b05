"""Shared by all tests: composed configs, small runs, and the entry points as real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from attnorm import config as schema

ROOT = Path(__file__).resolve().parent.parent

# A run of two epochs over two steps each: as short as the whole pipeline goes.
SHORT = [
    "epochs=2",
    "batch_size=16",
    "tracking.log_every=1",
    "tracking.tensorboard=false",
    "arch=mobilenetv2",
    "loader=torch",
    "data.workers=0",
]

# Small, and calm at small batches, where a MobileNet-v2 has one pixel per channel to normalize.
SMALL_RESNET = [
    "arch=timm",
    "arch.timm_model=resnet10t",
    r"arch.attentive_sites='layer(\d)\.\d+\.bn2'",
]
# The same with checkpoints of 5 MB, for tests that need no more of it than that it trains.
TINY_RESNET = [*SMALL_RESNET, "arch.timm_model=test_resnet"]


def write_photos(root: Path, val_images: int) -> Path:
    """An ImageFolder of noise in three colours: 12 JPEGs of 40 × 36 a class to train on."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("val", val_images)):
        for index, name in enumerate(("blue", "green", "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 90, (36, 40, 3), generator=generator, dtype=torch.uint8)
                pixels[..., 2 - index] += 120
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.jpg", quality=95)
    return root


def compose_config(*overrides: str) -> schema.Config:
    """The typed config that ``train.py`` gets from these arguments."""
    return schema.compose(overrides)


@cache
def composed(*overrides: str) -> schema.Config:
    """Return the config of these overrides, composed once. Callers must not change it."""
    return compose_config(*overrides)


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Digits and passes in C are built once in a test session, outside the user's own cache."""
    previous = os.environ.get("ATTNORM_CACHE")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the folder above is that of all workers
        folder = folder.parent
    os.environ["ATTNORM_CACHE"] = str(folder / "cache")
    yield
    if previous is None:
        del os.environ["ATTNORM_CACHE"]
    else:
        os.environ["ATTNORM_CACHE"] = previous


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``train.py`` or ``eval.py`` as a person does, in an empty folder.

    ``processes`` above 1 goes through torchrun.
    """

    def run(
        script: str, *arguments: str, processes: int = 1, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            launcher += [f"--nproc-per-node={processes}"]
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "COLUMNS": "200"}
        if processes > 1:
            environment["OMP_NUM_THREADS"] = "1"
        return subprocess.run(
            [*launcher, str(ROOT / script), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
