"""The exact average precision of COCO: pycocotools is the referee, hotcoco may run in its place.

Both are given the same ground truth and the same detections, and give the same bits; a test holds
them to it. What is counted from their precisions and recalls is counted here, once for both.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from attnorm.detection.predictions import ImagePredictions, entries
from attnorm.errors import UserError

KINDS = ("bbox", "segm")
# The axes of COCO's arrays: overlap, recall, category, area, detections per image.
OVERLAPS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALLS = tuple(round(0.01 * step, 2) for step in range(101))
_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}  # all, under 32², up to 96², above
_LIMITS = {"1": 0, "10": 1, "100": 2}
_ALL, _MOST = _AREAS[""], _LIMITS["100"]
_ABSENT = -1.0  # what COCO writes where there is nothing to find

Array = NDArray[np.float64]
Referee = Callable[[dict[str, Any], list[dict[str, Any]], str], tuple[Array, Array]]


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """COCO's numbers, each by kind: ``bbox`` for boxes, ``segm`` for masks.

    Attributes:
        statistics: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl in percent; None
            where the ground truth has no object of that size.
        per_category: AP in percent by category id; None where there is no such object.
        precision: (10, 101, C, 4, 3), from 0 to 1 or −1: by overlap (0.5 to 0.95), recall (0 to 1),
            category, area (all, small, medium, large) and detections per image (1, 10, 100).
        recall: (10, C, 4, 3), likewise.
        category_ids: of the arrays' third and second axis.
    """

    statistics: Mapping[str, Mapping[str, float | None]]
    per_category: Mapping[str, Mapping[int, float | None]]
    precision: Mapping[str, Array]
    recall: Mapping[str, Array]
    category_ids: tuple[int, ...]

    def curve(self, kind: str, overlap: float | None = None) -> list[float]:
        """Precision in percent at the recalls ``RECALLS``, mean over the categories.

        Args:
            overlap: one of ``OVERLAPS``; None for the mean over all of them.
        """
        found = self.precision[kind][..., _ALL, _MOST]
        if overlap is not None:
            index = OVERLAPS.index(overlap)
            found = found[index : index + 1]
        there = (found > _ABSENT).all(axis=(0, 1))
        means: list[float] = (100 * found[..., there].mean(axis=(0, 2))).tolist()
        return means


def evaluate(
    coco_json: Path,
    predictions: Sequence[ImagePredictions],
    category_ids: Sequence[int],
    kinds: Sequence[str] = KINDS,
    referee: str = "pycocotools",
) -> AveragePrecision:
    """Compare predictions with all images of a file of COCO instances.

    An image without predictions counts as one where nothing was found. Areas of boxes are those of
    boxes and areas of masks those of masks. Annotations without ``area`` get that of their mask
    (or box), those without ``iscrowd`` are none.

    Args:
        category_ids: of labels 1, 2, …
        kinds: bbox, segm or both.
        referee: pycocotools, or hotcoco: the same numbers, many times faster.

    Raises:
        UserError: no such referee, or ground truth with nothing in it to find.
    """
    require_referee(referee)
    truth = json.loads(coco_json.read_text(encoding="utf-8"))
    _complete(truth, coco_json, kinds)
    categories = tuple(sorted(category["id"] for category in truth["categories"]))
    statistics, per_category, precisions, recalls = {}, {}, {}, {}
    for kind in kinds:
        found = [entry for image in predictions for entry in entries(image, category_ids, (kind,))]
        precision, recall = REFEREES[referee](truth, found, kind)
        statistics[kind] = dict(_statistics(precision, recall))
        per_category[kind] = {
            number: _percent(precision[:, :, index, _ALL, _MOST])
            for index, number in enumerate(categories)
        }
        precisions[kind], recalls[kind] = precision, recall
    return AveragePrecision(statistics, per_category, precisions, recalls, categories)


def require_referee(name: str) -> None:
    """Refuse what is unknown or not installed, which a run must know before its first evaluation.

    Raises:
        UserError: no such referee.
    """
    if name not in REFEREES:
        raise UserError(f"data.referee={name}: choose {' or '.join(REFEREES)}.")
    if find_spec(name) is None:
        raise UserError(
            f"data.referee={name} is not installed: pip install 'attnorm[fast-eval]', or use"
            " data.referee=pycocotools."
        )


def _statistics(precision: Array, recall: Array) -> Iterator[tuple[str, float | None]]:
    """The twelve in the order in which COCO's evaluation prints them."""
    yield "AP", _percent(precision[:, :, :, _ALL, _MOST])
    for overlap in (0.5, 0.75):
        index = OVERLAPS.index(overlap)
        yield f"AP{100 * overlap:.0f}", _percent(precision[index, :, :, _ALL, _MOST])
    for size in ("s", "m", "l"):
        yield f"AP{size}", _percent(precision[:, :, :, _AREAS[size], _MOST])
    for limit, index in _LIMITS.items():
        yield f"AR{limit}", _percent(recall[:, :, _ALL, index])
    for size in ("s", "m", "l"):
        yield f"AR{size}", _percent(recall[:, :, _AREAS[size], _MOST])


def _percent(values: Array) -> float | None:
    """The mean of what is there."""
    there = values[values > _ABSENT]
    return 100 * float(np.mean(there)) if there.size else None


def _complete(truth: dict[str, Any], path: Path, kinds: Sequence[str]) -> None:
    """Fill in what data sets of other makers leave out, and refuse what has nothing to find."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = int(annotation.get("iscrowd") == 1)
        segmentation = annotation.get("segmentation")
        if "segm" in kinds and not segmentation:
            raise UserError(
                f"data.val_annotations={path}: annotation {annotation['id']} has no segmentation:"
                " masks cannot be compared with it."
            )
        if annotation.get("area") is None:
            width, height = annotation["bbox"][2:]
            annotation["area"] = float(width * height)
            if segmentation:
                code = coco_mask.frPyObjects(segmentation, *sizes[annotation["image_id"]])
                code = coco_mask.merge(code) if isinstance(code, list) else code
                annotation["area"] = float(coco_mask.area(code))
    if all(annotation["iscrowd"] for annotation in truth["annotations"]):
        raise UserError(
            f"data.val_annotations={path} has no object to find: give annotations of the"
            " validation images."
        )


def _pycocotools(
    truth: dict[str, Any], found: list[dict[str, Any]], kind: str
) -> tuple[Array, Array]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):  # it prints
        expected = COCO()
        # It writes into annotations, and adds what another kind would stumble over.
        annotations = [dict(annotation) for annotation in truth["annotations"]]
        expected.dataset = {**truth, "annotations": annotations}
        expected.createIndex()
        if found:
            actual = expected.loadRes(found)
        else:  # loadRes wants to see a first one
            actual = COCO()
            actual.dataset = {**truth, "annotations": []}
            actual.createIndex()
        return _run(COCOeval(expected, actual, kind))


def _hotcoco(truth: dict[str, Any], found: list[dict[str, Any]], kind: str) -> tuple[Array, Array]:
    from hotcoco import COCO, COCOeval

    expected = COCO(truth)
    return _run(COCOeval(expected, expected.loadRes(found), kind))


def _run(evaluation: Any) -> tuple[Array, Array]:
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


REFEREES: Mapping[str, Referee] = {"pycocotools": _pycocotools, "hotcoco": _hotcoco}
