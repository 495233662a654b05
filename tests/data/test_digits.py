"""The embedded data set: complete or absent, whatever interrupts or races its construction."""

from __future__ import annotations

import os
import time
from collections import Counter
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from attnorm.config import LabelledImagesConfig, LoaderConfig
from attnorm.data import build
from attnorm.data.digits import digits_root
from attnorm.data.folder import scan
from attnorm.data.workers import nothing_to_collect
from attnorm.distributed import Placement
from attnorm.errors import UserError
from tests.data.conftest import CPU


def build_in_another_process(cache: Path) -> BaseProcess:
    process = get_context("fork").Process(target=_build, args=(cache,))
    with nothing_to_collect():
        process.start()
    return process


def _build(cache: Path) -> None:
    os.environ["ATTNORM_CACHE"] = str(cache)
    digits_root(None)


def finished(cache: Path) -> list[Path]:
    """Everything in the cache under a final name."""
    return [path for path in cache.iterdir() if not path.name.startswith(".")]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.jpg")}


def test_the_split_is_fixed_and_stratified() -> None:
    root = digits_root(None)
    splits = {split: scan(root / split) for split in ("train", "val")}
    assert {split: len(images) for split, images in splits.items()} == {"train": 1437, "val": 360}
    for images in splits.values():
        assert images.classes == tuple("0123456789")
        assert max(Counter(images.labels).values()) - min(Counter(images.labels).values()) <= 8
    names = [path.name for path in root.rglob("*.jpg")]
    assert len(set(names)) == 1797


def test_a_jpeg_shows_the_scan_it_was_made_from() -> None:
    scans, labels = load_digits(return_X_y=True)
    root = digits_root(None)
    for path in sorted(root.glob("val/*/*.jpg"))[::40]:
        number = int(path.stem)
        assert labels[number] == int(path.parent.name)
        with Image.open(path) as image:
            assert image.size == (32, 32)
            small = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), dtype=float)
        assert np.abs(small - scans[number].reshape(8, 8) * 255 / 16).mean() < 16


def test_processes_that_build_at_once_get_one_complete_folder(tmp_path: Path) -> None:
    processes = [build_in_another_process(tmp_path) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    (root,) = tmp_path.iterdir()  # nothing half-built is left
    assert contents(root) == contents(digits_root(None))


def test_an_interrupted_build_is_not_taken_for_a_finished_one(tmp_path: Path) -> None:
    process = build_in_another_process(tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert list(tmp_path.rglob("*.jpg"))
    assert not finished(tmp_path)

    again = build_in_another_process(tmp_path)
    again.join(60)
    (root,) = finished(tmp_path)
    assert len(contents(root)) == 1797


def test_the_folder_can_be_chosen_and_must_be_free(tmp_path: Path) -> None:
    chosen = LabelledImagesConfig(
        name="digits", source="digits", root=str(tmp_path / "mine"), num_classes=10
    )
    build.check(chosen, LoaderConfig(name="torch"), Placement(CPU, batch_size=8))
    assert len(contents(tmp_path / "mine")) == 1797

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"data\.root=.*taken is neither empty nor"):
        digits_root(str(tmp_path / "taken"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*ATTNORM_CACHE"):
        digits_root(str(tmp_path / "file" / "digits"))
