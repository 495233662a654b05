"""What other test sets than ILSVRC's own need to know of its classes, from the files of timm.

Reassessed labels: Beyer et al. (2020); ImageNet-A and -R: Hendrycks et al. (2021); ImageNet-V2,
whose folders have numbers for names: Recht et al. (2019).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from attnorm.data.source import ImageSource, printable
from attnorm.errors import UserError

SUBSETS = ("imagenet_a", "imagenet_r")
_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})")


@functools.cache
def synsets(name: str = "imagenet") -> tuple[str, ...]:
    """WordNet ids of ILSVRC's 1000 classes in the order of their numbers, or of a subset's."""
    return tuple(_read(f"{name}_synsets.txt").split())


def subset_columns(name: str, class_names: Sequence[str]) -> NDArray[np.int64]:
    """The places in ``class_names`` of the classes that a test set has, in ascending order.

    Raises:
        UserError: the model does not know all of them.
    """
    wanted = synsets(name)
    place = {name: index for index, name in enumerate(class_names)}
    missing = [wnid for wnid in wanted if wnid not in place]
    if missing:
        raise UserError(
            f"classes={name}: the model was not trained on {len(missing)} of its {len(wanted)}"
            f" classes, such as {missing[0]}."
        )
    return np.array(sorted(place[wnid] for wnid in wanted))


def reassessed_labels(images: ImageSource, class_names: Sequence[str]) -> NDArray[np.int64]:
    """Every image's classes as places in ``class_names``, (N, most), filled up with -1.

    Images on which nobody agreed have none.

    Raises:
        UserError: images with other names than those of ILSVRC's validation set.
    """
    place = {name: index for index, name in enumerate(class_names)}
    columns = [place.get(wnid, -1) for wnid in synsets()]
    known: list[list[int]] = json.loads(_read("imagenet_real_labels.json"))
    found = []
    for index in range(len(images)):
        path = images.path(index)
        match = _VALIDATION_IMAGE.search(PurePath(path).name)
        if match is None or not 1 <= int(match[1]) <= len(known):
            raise UserError(
                f"labels=real knows ILSVRC2012_val_00000001.JPEG to …{len(known):08d}.JPEG, not"
                f" {printable(path)}: evaluate ILSVRC's own validation images, as files."
            )
        found.append([columns[label] for label in known[int(match[1]) - 1] if columns[label] >= 0])
    table = np.full((len(found), max(1, *map(len, found))), -1)
    for row, labels in zip(table, found, strict=True):
        row[: len(labels)] = labels
    return table


def _read(name: str) -> str:
    return (files("timm.data") / "_info" / name).read_text(encoding="utf-8")
