"""The official ILSVRC 2012 archives as an ImageFolder: resumable, in parallel, checked.

The numbers it is checked against are the development kit's own: images per class, and one line of
ground truth for every validation image.
"""

from __future__ import annotations

import logging
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from attnorm.data.decode import BrokenImageError, decode_rgb
from attnorm.data.folder import ImageFolder, scan
from attnorm.data.prepare.parallel import in_parallel, log_progress
from attnorm.data.source import printable
from attnorm.errors import UserError
from attnorm.files import written_whole

logger = logging.getLogger(__name__)

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VAL_ARCHIVE = "ILSVRC2012_img_val.tar"
DEVKIT_ARCHIVE = "ILSVRC2012_devkit_t12.tar.gz"
_SYNSETS = "data/meta.mat"
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_TRAIN_IMAGE = re.compile(r"n\d{8}_\d+\.JPEG")
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_SYNTHETIC_SIZE = (500, 375)  # of most ImageNet photographs, pixels


@dataclass(frozen=True)
class Devkit:
    """What the development kit says: images to train on by class, classes of validation images."""

    train_images: dict[str, int]
    val_classes: list[str]


def prepare(archives: Path, root: Path, workers: int) -> None:
    """Extract the three archives in ``archives`` to ``root/train`` and ``root/val``.

    What an interrupted call extracted is kept: a class folder under its final name is whole.

    Raises:
        UserError: an archive is missing, damaged or not the official one.
    """
    for name in (DEVKIT_ARCHIVE, TRAIN_ARCHIVE, VAL_ARCHIVE):
        if not (archives / name).is_file():
            raise UserError(
                f"{archives / name} is missing: download it from image-net.org after registering,"
                f" and put {TRAIN_ARCHIVE}, {VAL_ARCHIVE} and {DEVKIT_ARCHIVE} into one folder."
            )
    devkit = read_devkit(archives / DEVKIT_ARCHIVE)
    _extract_train(archives / TRAIN_ARCHIVE, root / "train", devkit, workers)
    _extract_val(archives / VAL_ARCHIVE, root / "val", devkit)
    check_counts(root, devkit)


def read_devkit(archive: Path) -> Devkit:
    """Classes and ground truth of a development kit."""
    from scipy.io import loadmat  # for this one file: neither training nor evaluation needs SciPy

    with _opened(archive) as kit:
        members = {name.split("/", 1)[-1]: name for name in kit.getnames()}
        missing = [name for name in (_SYNSETS, _GROUND_TRUTH) if name not in members]
        if missing:
            raise UserError(f"{archive} has no {missing[0]}: it is not the development kit.")
        synsets = loadmat(_member(kit, members[_SYNSETS]), squeeze_me=True)["synsets"]
        truth = _member(kit, members[_GROUND_TRUTH]).read().decode().split()
    # Inner nodes of the WordNet tree are listed as well; classes are its leaves.
    leaves = [row for row in np.atleast_1d(synsets) if int(row["num_children"]) == 0]
    by_number = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    return Devkit(
        train_images={str(row["WNID"]): int(row["num_train_images"]) for row in leaves},
        val_classes=[by_number[int(number)] for number in truth],
    )


def check_counts(root: Path, devkit: Devkit) -> None:
    """Compare both splits with the development kit.

    Raises:
        UserError: a class has another number of images.
    """
    expected_val = {name: devkit.val_classes.count(name) for name in set(devkit.val_classes)}
    for split, expected in (("train", devkit.train_images), ("val", expected_val)):
        images = scan(root / split)
        counts = dict(zip(images.classes, np.bincount(images.labels).tolist(), strict=True))
        for name in sorted(expected.keys() | counts.keys()):
            if counts.get(name, 0) != expected.get(name, 0):
                raise UserError(
                    f"{root / split / name} has {counts.get(name, 0)} images instead of"
                    f" {expected.get(name, 0)}: remove that folder and run this again."
                )
        logger.info("%s: %s images, %s classes", split, f"{len(images):,}", len(counts))


def broken_images(root: Path, workers: int) -> list[tuple[str, str]]:
    """Decode every image of both splits; the paths that fail, and why."""
    broken = []
    for split in ("train", "val"):
        images = scan(root / split)
        parts = np.array_split(np.arange(len(images)), min(len(images), 100 * workers))
        work = [(images, part) for part in parts]
        for found in in_parallel(_decode_part, work, workers, f"decoding {split}"):
            broken += found
    return sorted(broken)


def synthesize(root: Path, images: int, classes: int, workers: int) -> None:
    """A fake ImageNet for rehearsals: ``images`` to train on, a 25th as many to evaluate.

    Photographic in size, colour and weight (500×375 pixels, about 110 kB), not in content.
    """
    if images < classes:
        raise UserError(
            f"--synthetic {images} is less than --classes {classes}: every class needs one."
        )
    work = []
    for split, count in (("train", images), ("val", max(classes, images // 25))):
        for name in (f"n{number:08d}" for number in range(classes)):
            (root / split / name).mkdir(parents=True, exist_ok=True)
        for part in np.array_split(np.arange(count), min(count, 100)):
            work.append((root / split, part, classes))
    for _ in in_parallel(_draw_part, work, workers, "drawing"):
        pass


def _extract_train(archive: Path, target: Path, devkit: Devkit, workers: int) -> None:
    with _opened(archive) as outer:
        classes = {Path(member.name).stem: member for member in outer if member.isfile()}
    missing = sorted(devkit.train_images.keys() - classes.keys())
    if missing:
        raise UserError(f"{archive} has no {missing[0]}.tar: it is not the whole training archive.")
    target.mkdir(parents=True, exist_ok=True)
    work = [
        (archive, classes[name].offset_data, target / name)
        for name in sorted(devkit.train_images)
        if not (target / name).is_dir()
    ]
    for _ in in_parallel(_extract_class, work, workers, "extracting classes to train on"):
        pass


def _extract_class(work: tuple[Path, int, Path]) -> None:
    """One inner archive, which begins at a byte of the outer one, to a class folder."""
    archive, offset, target = work
    building = target.with_name(f".{target.name}.partial")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    with archive.open("rb") as stream:
        stream.seek(offset)
        with _opened(archive, stream) as inner:
            for member in inner:
                if _TRAIN_IMAGE.fullmatch(member.name):
                    _copy(inner, member, building / member.name)
    building.rename(target)


def _extract_val(archive: Path, target: Path, devkit: Devkit) -> None:
    for name in set(devkit.val_classes):
        (target / name).mkdir(parents=True, exist_ok=True)
    with _opened(archive) as images:
        for done, member in enumerate(images, start=1):
            match = _VAL_IMAGE.fullmatch(Path(member.name).name)
            if not match:
                continue
            number = int(match[1])
            if number > len(devkit.val_classes):
                raise UserError(f"{archive} and the ground truth in {DEVKIT_ARCHIVE} do not match.")
            path = target / devkit.val_classes[number - 1] / match[0]
            if not (path.is_file() and path.stat().st_size == member.size):
                with written_whole(path) as building:
                    _copy(images, member, building)
            log_progress("extracting validation images", done, len(devkit.val_classes))


@contextmanager
def _opened(archive: Path, stream: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
    """An archive, or the one inside it that begins where ``stream`` stands."""
    try:
        with tarfile.open(fileobj=stream) if stream else tarfile.open(archive) as opened:
            yield opened
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} is damaged ({error}): download it again.") from error


def _member(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(member)
    assert stream is not None
    return stream


def _copy(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    with _member(archive, member) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)


def _decode_part(work: tuple[ImageFolder, np.ndarray]) -> list[tuple[str, str]]:
    images, numbers = work
    broken = []
    for index in numbers:
        try:
            decode_rgb(images.read(int(index)))
        except (BrokenImageError, OSError) as error:
            broken.append((printable(images.path(int(index))), str(error)))
    return broken


def _draw_part(work: tuple[Path, np.ndarray, int]) -> None:
    folder, numbers, classes = work
    for number in numbers:
        random = np.random.default_rng([len(folder.name), int(number)])
        width, height = _SYNTHETIC_SIZE if random.random() < 0.8 else _SYNTHETIC_SIZE[::-1]
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noise = random.integers(-27, 28, (height, width, 1), dtype=np.int16)
        pixels = (smooth + noise).clip(0, 255).astype(np.uint8)
        name = f"n{number % classes:08d}"
        Image.fromarray(pixels).save(folder / name / f"{name}_{number}.JPEG", quality=90)
