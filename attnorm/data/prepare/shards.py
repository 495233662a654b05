"""An ImageFolder becomes WebDataset or TFRecord shards, with the index files of DALI's readers."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from attnorm.data.folder import ImageFolder, scan
from attnorm.data.prepare.parallel import in_parallel
from attnorm.data.shards import INDEX
from attnorm.errors import UserError
from attnorm.files import written_whole

_SUFFIX = {"webdataset": ".tar", "tfrecord": ".tfrecord"}
_RECORD_HEADER = 12  # length and its checksum

# (first byte of the image in the shard, number of bytes) of every image, in order.
Places = list[tuple[int, int]]


def write_shards(
    source: Path, target: Path, format: str, images_per_shard: int, workers: int
) -> None:
    """Pack ``source`` (train/ and val/, or one of them) into shards below ``target``.

    Training images are mixed over all shards, so that a window of a few shards is a fair sample;
    evaluation images stay in order. The index is written last: without it there are no shards.

    Raises:
        UserError: there is nothing to pack, or shards are there already.
    """
    splits = [split for split in ("train", "val") if (source / split).is_dir()]
    if not splits:
        raise UserError(f"{source} has neither train/ nor val/: give the root of an ImageFolder.")
    for split in splits:
        if (target / split / INDEX).exists():
            raise UserError(f"{target / split} has shards already: remove them or choose another.")
    for split in splits:
        _write_split(scan(source / split), target / split, format, images_per_shard, workers)


def _write_split(
    images: ImageFolder, target: Path, format: str, images_per_shard: int, workers: int
) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for left in target.glob(".*.tmp"):  # by a killed process, as large as a shard
        left.unlink()
    order = np.arange(len(images))
    if target.name == "train":
        order = np.random.default_rng(0).permutation(order)
    starts = np.arange(0, len(order), images_per_shard)
    parts = np.split(order, starts[1:])
    files = [f"{target.name}-{number:05d}{_SUFFIX[format]}" for number in range(len(parts))]
    work = [(images, part, target / name, format) for part, name in zip(parts, files, strict=True)]
    written = dict(in_parallel(_write_shard, work, workers, f"writing {target.name}"))
    places = np.array([place for name in files for place in written[name]], dtype=np.int64)
    # A stream, because savez would add .npz to a name.
    with written_whole(target / INDEX) as building, building.open("wb") as stream:
        np.savez(
            stream,
            format=format,
            files=np.array(files),
            classes=np.array(images.classes),
            labels=images.labels[order],
            shards=starts,
            offsets=places[:, 0],
            sizes=places[:, 1],
        )


def _write_shard(work: tuple[ImageFolder, NDArray[np.int64], Path, str]) -> tuple[str, Places]:
    images, part, path, format = work
    write = _write_tar if format == "webdataset" else _write_records
    samples = ((images.read(int(index)).tobytes(), int(images.labels[index])) for index in part)
    with written_whole(path) as building:
        with building.open("wb") as stream:
            places, lines = write(stream, samples)
        path.with_suffix(".idx").write_text("\n".join(lines) + "\n")
    return path.name, places


def _write_tar(stream: IO[bytes], samples: Iterator[tuple[bytes, int]]) -> tuple[Places, list[str]]:
    """``KEY.jpg`` and ``KEY.cls`` of each sample, and the lines of a DALI index (version 1.2)."""
    places, lines = [], []
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, (encoded, label) in enumerate(samples):
            parts = []
            for extension, content in (("jpg", encoded), ("cls", str(label).encode())):
                entry = tarfile.TarInfo(f"{number:08d}.{extension}")
                entry.size = len(content)
                begin = stream.tell() + tarfile.BLOCKSIZE
                archive.addfile(entry, io.BytesIO(content))
                parts.append(f"{extension} {begin} {len(content)} {entry.name}")
                if extension == "jpg":
                    places.append((begin, len(content)))
            lines.append(" ".join(parts))
    return places, [f"v1.2 {len(lines)}", *lines]


def _write_records(
    stream: IO[bytes], samples: Iterator[tuple[bytes, int]]
) -> tuple[Places, list[str]]:
    """A ``tf.train.Example`` of each sample, and the lines of a DALI index (offset, length)."""
    # Of TensorBoard, for the checksums: only this format needs it.
    from tensorboard.summary.writer.record_writer import RecordWriter

    places, lines = [], []
    writer = RecordWriter(stream)
    for encoded, label in samples:
        begin = stream.tell()
        example = _example(encoded, label)
        writer.write(example)
        place = begin + _RECORD_HEADER + example.index(encoded) if encoded else begin
        places.append((place, len(encoded)))
        lines.append(f"{begin} {stream.tell() - begin}")
    return places, lines


def _example(encoded: bytes, label: int) -> bytes:
    """The protocol buffer: Example{features{feature: map<string, Feature>}}."""
    image = _field(1, _field(1, encoded))  # bytes_list{value}
    number = _field(3, _field(1, _varint(label)))  # int64_list{value}, packed
    entries = (("image/encoded", image), ("image/class/label", number))
    features = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, value)) for name, value in entries
    )
    return _field(1, features)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return struct.pack(f"{len(groups) + 1}B", *groups, value)
