"""Miniature archives in the official layout: extracted, interrupted, resumed, checked, verified."""

from __future__ import annotations

import io
import shlex
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from attnorm.data.folder import scan
from attnorm.data.prepare import imagenet
from attnorm.errors import UserError
from tests.data.conftest import photo
from tests.script import Finished, run_script

TRAIN = {"n01440764": 5, "n01443537": 3, "n02102040": 4}
# Numbered by no alphabet, as in the development kit.
NUMBERS = {1: "n02102040", 2: "n01440764", 3: "n01443537"}
TRUTH = [3, 1, 1, 2, 3, 2]


def jpeg(number: int) -> bytes:
    stream = io.BytesIO()
    photo(number, (60 + number, 50)).save(stream, "JPEG")
    return stream.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def devkit(path: Path) -> None:
    kinds = [
        ("ILSVRC2012_ID", "i4"),
        ("WNID", "O"),
        ("num_children", "i4"),
        ("num_train_images", "i4"),
    ]
    rows = [(number, name, 0, TRAIN[name]) for number, name in NUMBERS.items()]
    rows.append((4, "n00001740", 3, 0))  # an inner node
    matrix = io.BytesIO()
    savemat(matrix, {"synsets": np.array([[row] for row in rows], dtype=kinds)})
    with tarfile.open(path, "w:gz") as kit:
        add(kit, "ILSVRC2012_devkit_t12/data/meta.mat", matrix.getvalue())
        truth = "".join(f"{number}\n" for number in TRUTH).encode()
        add(kit, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    folder = tmp_path / "archives"
    folder.mkdir()
    devkit(folder / imagenet.DEVKIT_ARCHIVE)
    with tarfile.open(folder / imagenet.TRAIN_ARCHIVE, "w") as outer:
        number = 0
        for name, count in TRAIN.items():
            inner_bytes = io.BytesIO()
            with tarfile.open(fileobj=inner_bytes, mode="w") as inner:
                for image in range(count):
                    add(inner, f"{name}_{image}.JPEG", jpeg(number))
                    number += 1
            add(outer, f"{name}.tar", inner_bytes.getvalue())
    with tarfile.open(folder / imagenet.VAL_ARCHIVE, "w") as outer:
        for image in range(len(TRUTH)):
            add(outer, f"ILSVRC2012_val_{image + 1:08d}.JPEG", jpeg(50 + image))
    return folder


def prepare_imagenet(*arguments: object) -> Finished:
    """``scripts/prepare_imagenet.py`` in this process."""
    return run_script("prepare_imagenet", *map(str, arguments))


def complete(root: Path) -> None:
    train, val = scan(root / "train"), scan(root / "val")
    assert dict(zip(train.classes, np.bincount(train.labels), strict=True)) == TRAIN
    for number, label in enumerate(TRUTH):
        path = root / "val" / NUMBERS[label] / f"ILSVRC2012_val_{number + 1:08d}.JPEG"
        assert path.read_bytes() == jpeg(50 + number)
    assert len(val) == len(TRUTH)
    assert (root / "train" / "n01443537" / "n01443537_2.JPEG").read_bytes() == jpeg(7)


def test_the_archives_become_an_image_folder(archives: Path, tmp_path: Path) -> None:
    root = tmp_path / "odd däta (1)"
    finished = prepare_imagenet("--archives", archives, "--root", root, "--workers", 2)
    assert finished.returncode == 0, finished.stderr
    complete(root)
    command = shlex.split(finished.stdout.splitlines()[-1].removeprefix("ready: "))
    assert command == ["python", "train.py", "data=imagenet", f"data.root={root}"]


def test_an_interrupted_extraction_goes_on_where_it_was(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []
    copy = imagenet._copy

    def copy_a_few(archive: Any, member: Any, path: Path) -> None:
        copied.append(path)
        if len(copied) == 7:  # in the second class
            path.write_bytes(b"half of an im")
            raise KeyboardInterrupt
        copy(archive, member, path)

    root = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "_copy", copy_a_few)
        # In this process, so that the interruption comes at a known place.
        patch.setattr(imagenet, "in_parallel", lambda function, work, *_: map(function, work))
        with pytest.raises(KeyboardInterrupt):
            imagenet.prepare(archives, root, 1)
    whole = root / "train" / "n01440764"
    times = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert len(times) == 5
    assert not (root / "train" / "n01443537").exists()

    imagenet.prepare(archives, root, 2)
    complete(root)
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == times
    assert not list(root.rglob("*.partial"))

    truncated = root / "val" / NUMBERS[3] / "ILSVRC2012_val_00000001.JPEG"
    truncated.write_bytes(b"")
    imagenet.prepare(archives, root, 1)
    complete(root)


def test_a_truncated_archive_is_named(archives: Path, tmp_path: Path) -> None:
    path = archives / imagenet.TRAIN_ARCHIVE
    path.write_bytes(path.read_bytes()[:-25_000])
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar is damaged.*download it again"):
        imagenet.prepare(archives, tmp_path / "out", 1)


def test_a_missing_archive_is_named(archives: Path, tmp_path: Path) -> None:
    (archives / imagenet.VAL_ARCHIVE).unlink()
    finished = prepare_imagenet("--archives", archives, "--root", tmp_path / "out")
    assert finished.returncode == 2
    assert "ILSVRC2012_img_val.tar is missing" in finished.stderr
    assert not (tmp_path / "out").exists()


def test_a_class_with_too_few_images_is_named(archives: Path, tmp_path: Path) -> None:
    root = tmp_path / "out"
    imagenet.prepare(archives, root, 1)
    (root / "train" / "n02102040" / "n02102040_0.JPEG").unlink()
    with pytest.raises(UserError, match="n02102040 has 3 images instead of 4"):
        imagenet.prepare(archives, root, 1)


def test_verification_lists_every_broken_image(archives: Path, tmp_path: Path) -> None:
    root = tmp_path / "out"
    imagenet.prepare(archives, root, 1)
    assert prepare_imagenet("--root", root, "--verify", "--workers", 2).returncode == 0
    broken = [scan(root / "train").path(4), scan(root / "val").path(0)]
    for path in broken:
        Path(path).write_bytes(Path(path).read_bytes()[:500])
    finished = prepare_imagenet("--root", root, "--verify", "--workers", 2)
    assert finished.returncode == 1
    assert all(f"{path}: " in finished.stdout for path in broken)
    assert "2 broken images" in finished.stdout


def test_a_synthetic_set_has_photographs_in_every_class(tmp_path: Path) -> None:
    options = ("--synthetic", 6, "--classes", 3, "--workers", 2)
    assert prepare_imagenet("--root", tmp_path, *options).returncode == 0
    train, val = scan(tmp_path / "train"), scan(tmp_path / "val")
    assert np.bincount(train.labels).tolist() == [2, 2, 2]
    assert np.bincount(val.labels).tolist() == [1, 1, 1]
    sizes = [Path(train.path(index)).stat().st_size for index in range(6)]
    assert all(80_000 < size < 140_000 for size in sizes)
    assert len({train.read(index).tobytes() for index in range(6)} | {val.read(0).tobytes()}) == 7


def test_nothing_to_do_is_a_mistake(tmp_path: Path) -> None:
    finished = prepare_imagenet("--root", tmp_path)
    assert finished.returncode == 2
    assert "--archives FOLDER" in finished.stderr
