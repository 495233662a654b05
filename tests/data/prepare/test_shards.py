"""Shards hold the folder's images and labels, for our loaders and for other people's readers."""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from pathlib import Path

import pytest
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.plugin.pytorch import feed_ndarray  # noqa: F401 - loads torch's symbols first
from nvidia.dali.tfrecord import FixedLenFeature, int64, string

from attnorm.data.folder import scan
from attnorm.data.prepare import shards as writing
from attnorm.data.prepare.shards import write_shards
from attnorm.data.shards import FORMATS, read_shards
from attnorm.data.source import ImageSource
from attnorm.errors import UserError
from tests.data.conftest import fill
from tests.script import run_script

Sample = tuple[str, int]


def samples(source: ImageSource) -> Counter[Sample]:
    return Counter(
        (hashlib.md5(source.read(index).tobytes()).hexdigest(), int(source.labels[index]))
        for index in range(len(source))
    )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_hold_the_samples_of_the_folder(
    photos: Path, packed: dict[str, Path], format: str, split: str
) -> None:
    folder, shards = scan(photos / split), read_shards(packed[format] / split, format)
    assert shards.classes == folder.classes
    assert len(shards.files) == -(-len(folder) // 7)
    assert samples(shards) == samples(folder)
    in_order = [shards.read(index).tobytes() for index in range(len(shards))]
    assert (in_order == [folder.read(index).tobytes() for index in range(len(folder))]) == (
        split == "val"
    )


def dali_reads(root: Path, format: str) -> Counter[Sample]:
    """What DALI's own reader finds in the training shards."""
    suffix = {"webdataset": "*.tar", "tfrecord": "*.tfrecord"}[format]
    paths = [str(path) for path in sorted((root / "train").glob(suffix))]
    indices = [str(Path(path).with_suffix(".idx")) for path in paths]
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        if format == "webdataset":
            image, label = fn.readers.webdataset(
                paths=paths, index_paths=indices, ext=["jpg", "cls"], name="reader"
            )
        else:
            records = fn.readers.tfrecord(
                path=paths,
                index_path=indices,
                features={
                    "image/encoded": FixedLenFeature((), string, ""),
                    "image/class/label": FixedLenFeature([1], int64, -1),
                },
                name="reader",
            )
            image, label = records["image/encoded"], records["image/class/label"]
        pipeline.set_outputs(fn.reinterpret(image, dtype=types.UINT8), label)
    pipeline.build()
    found: Counter[Sample] = Counter()
    for _ in range(pipeline.epoch_size("reader")):
        image, label = (output.at(0) for output in pipeline.run())
        number = int(label.tobytes()) if format == "webdataset" else int(label[0])
        found[hashlib.md5(image.tobytes()).hexdigest(), number] += 1
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_dalis_own_readers_read_them(photos: Path, packed: dict[str, Path], format: str) -> None:
    assert dali_reads(packed[format], format) == samples(scan(photos / "train"))


def test_shards_that_are_there_already_are_not_written_over(packed: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="has shards already"):
        write_shards(packed["tfrecord"], packed["tfrecord"], "tfrecord", 7, 1)


def test_what_a_killed_process_left_is_removed_and_nothing_half_written_is_there(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train").mkdir()
    left = tmp_path / "train" / ".train-00003.tar.4242.tmp"
    left.write_bytes(b"half of a sha")
    with monkeypatch.context() as patch:
        # In this process, so that the interruption comes at a known place.
        patch.setattr(writing, "in_parallel", lambda function, work, *_: map(function, work))
        patch.setattr(writing, "_write_tar", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_shards(photos, tmp_path, "webdataset", 7, 1)
    assert not list((tmp_path / "train").iterdir())
    write_shards(photos, tmp_path, "webdataset", 7, 2)
    assert samples(read_shards(tmp_path / "train", "webdataset")) == samples(scan(photos / "train"))


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_command_packs_a_folder_and_prints_a_line_to_copy(tmp_path: Path) -> None:
    source, target = tmp_path / "odd däta (1)", tmp_path / "it's packed"
    for split in ("train", "val"):
        fill(source / split / "ant", 2)
    arguments = ("--source", str(source), "--target", str(target), "--format", "webdataset")
    finished = run_script("make_shards", *arguments, "--workers", "1")
    assert finished.returncode == 0, finished.stderr
    command = shlex.split(finished.stdout.splitlines()[-1].removeprefix("ready: "))
    assert command == [
        *("python", "train.py", "data=imagenet"),
        *(f"data.root={target}", "data.format=webdataset"),
    ]
    assert len(read_shards(target / "train", "webdataset")) == 2


def test_a_shard_of_no_image_is_a_mistake(tmp_path: Path) -> None:
    arguments = ("--source", str(tmp_path), "--target", str(tmp_path), "--format", "tfrecord")
    finished = run_script("make_shards", *arguments, "--images-per-shard", "0")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "error: --images-per-shard must be at least 1.\n"
