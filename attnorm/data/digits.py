"""The embedded demo data: scikit-learn's 1,797 digit scans, written once as a JPEG ImageFolder.

The scans (UCI Machine Learning Repository, CC BY 4.0) are 8×8 pixels with 17 grey levels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from attnorm.errors import UserError
from attnorm.files import cache_folder, make_whole

TRAIN_IMAGES, VAL_IMAGES = 1437, 360
IMAGE_SIZE = 32
_FOLDER = "digits-v1"


def digits_root(root: str | None) -> Path:
    """The folder with ``train/`` and ``val/``, built first where it is not there yet.

    Several processes may ask at once; a folder under the final name is always complete.

    Raises:
        UserError: the folder cannot be written, or ``root`` holds something else.
    """
    final = Path(root).expanduser() if root is not None else cache_folder() / _FOLDER
    if _is_whole(final):
        return final
    if final.exists() and any(final.iterdir()):
        raise UserError(
            f"data.root={final} is neither empty nor a folder of digits (train/ and val/):"
            " give another data.root, or none."
        )
    try:
        make_whole(final, _write, lambda: _is_whole(final))
    except OSError as error:
        raise UserError(
            f"The digits cannot be written to {final} ({error.strerror or error}): set data.root or"
            " ATTNORM_CACHE to a folder that can be written."
        ) from error
    return final


def _is_whole(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "val").is_dir()


def _write(root: Path) -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans, labels = load_digits(return_X_y=True)
    numbers = np.arange(len(labels))
    train, val = train_test_split(
        numbers, train_size=TRAIN_IMAGES, test_size=VAL_IMAGES, stratify=labels, random_state=0
    )
    for split, members in (("train", train), ("val", val)):
        for label in range(10):
            (root / split / str(label)).mkdir(parents=True)
        for number in members:
            grey = Image.fromarray((scans[number].reshape(8, 8) * 255 / 16).astype(np.uint8))
            large = grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
            path = root / split / str(labels[number]) / f"{number:04d}.jpg"
            large.convert("RGB").save(path, quality=95, subsampling=0)
