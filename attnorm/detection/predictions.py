"""What a detector found, in pixels of the image file, and COCO's file format for it.

Masks are run-length codes from the start: an image with a hundred objects takes some kilobytes, and
never a stack of a hundred masks of its size.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from attnorm.detection.batch import Detections, Size, Targets
from attnorm.detection.run_lengths import covers, encode_window
from attnorm.errors import UserError
from attnorm.files import written_whole

# Side of the margin of zeros around a predicted mask, so that it fades at the border of its box.
_PADDING = 1


@dataclass(frozen=True, eq=False)
class ImagePredictions:
    """Objects in one image, in the model's order: among equal scores it decides what AP is.

    Attributes:
        size: of the image file.
        labels: int64 (D,), 1 to the number of classes.
        scores: float64 (D,), each a float32 number.
        boxes: float64 (D, 4): x, y, width, height in pixels of the image file.
        masks: COCO's compressed run-length codes, one for each box; None of a detector without.
    """

    image_id: int
    size: Size
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]
    masks: tuple[bytes, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def bitmap(self, index: int) -> NDArray[np.uint8]:
        """A mask, 0 or 1, as large as the image: (height, width)."""
        assert self.masks is not None, "a detector without masks"
        pixels: NDArray[np.uint8] = coco_mask.decode(
            {"size": list(self.size), "counts": self.masks[index]}
        )
        return pixels

    def select(self, kept: NDArray[np.bool_]) -> ImagePredictions:
        """The objects that a boolean array (D,) names."""
        masks = self.masks
        if masks is not None:
            masks = tuple(mask for mask, keep in zip(masks, kept, strict=True) if keep)
        labels, scores, boxes = self.labels[kept], self.scores[kept], self.boxes[kept]
        return ImagePredictions(self.image_id, self.size, labels, scores, boxes, masks)


def from_detections(
    detections: Detections, image_id: int, size: Size, original: Size, mask_threshold: float = 0.5
) -> ImagePredictions:
    """Detections in the network's input as predictions in the image file.

    Masks are pasted as torchvision does (``roi_heads.paste_masks_in_image``), on the CPU, and one
    at a time: memory is that of one box.

    Args:
        size: of the network's input, without its padding.
        original: of the image file.
        mask_threshold: what a pixel's probability has to exceed.
    """
    boxes = detections.boxes.float().cpu() * _scale(original, size)
    masks = None
    if detections.masks is not None:
        masks = _paste(detections.masks.float().cpu(), boxes, original, mask_threshold)
    return ImagePredictions(
        image_id,
        original,
        detections.labels.cpu().numpy(),
        detections.scores.float().cpu().double().numpy(),
        _xywh(boxes),
        masks,
    )


def from_targets(targets: Targets, image_id: int, size: Size) -> ImagePredictions:
    """What there is to find in the network's input, as predictions with a score of one."""
    bitmaps = [bitmap.cpu().numpy() for bitmap in targets.masks.bitmaps()]
    corners = targets.masks.windows[:, :2].tolist()
    masks = tuple(
        encode_window(bitmap, (x, y), size) for bitmap, (x, y) in zip(bitmaps, corners, strict=True)
    )
    labels = targets.labels.cpu().numpy()
    boxes = _xywh(targets.boxes.float().cpu())
    return ImagePredictions(image_id, size, labels, np.ones(len(labels)), boxes, masks)


def write_predictions(
    path: Path, predictions: Iterable[ImagePredictions], category_ids: Sequence[int]
) -> None:
    """Write COCO's result format: one list, each object with its box, score and mask.

    pycocotools' ``loadRes`` takes the area of an object from its box where there is one, and that
    decides which of APs, APm and APl it counts for. What papers report for masks is made with the
    masks' own areas: leave ``bbox`` out of the entries there, as
    :func:`attnorm.detection.average_precision.evaluate` does.

    Args:
        category_ids: of labels 1, 2, …

    Raises:
        UserError: the place cannot be written.
    """
    try:
        with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            lines = (
                json.dumps(entry) for image in predictions for entry in entries(image, category_ids)
            )
            file.write("[")
            for number, line in enumerate(lines):
                file.write((",\n" if number else "\n") + line)
            file.write("\n]\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def entries(
    image: ImagePredictions,
    category_ids: Sequence[int],
    kinds: Sequence[str] = ("bbox", "segm"),
) -> Iterator[dict[str, Any]]:
    """An image's objects in COCO's result format: boxes, masks or both, as ``kinds`` asks."""
    for index in range(len(image)):
        entry: dict[str, Any] = {
            "image_id": image.image_id,
            "category_id": category_ids[int(image.labels[index]) - 1],
            "score": float(image.scores[index]),
        }
        if "bbox" in kinds:
            entry["bbox"] = image.boxes[index].tolist()
        if "segm" in kinds and image.masks is not None:
            counts = image.masks[index].decode("ascii")
            entry["segmentation"] = {"size": list(image.size), "counts": counts}
        yield entry


class ImageList(Protocol):
    """What reading predictions needs of a data set."""

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """(I,)"""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(I, 2): height and width."""

    @property
    def category_ids(self) -> NDArray[np.int64]:
        """(C,), of labels 1, 2, …"""


def read_predictions(path: Path, coco: ImageList) -> list[ImagePredictions]:
    """A file in COCO's result format: every image of ``coco``, with what the file has for it.

    Objects stay in the file's order. Those without a box get that of their mask.

    Raises:
        UserError: no such file, another format, or images or categories that ``coco`` lacks.
    """
    found = _read_list(path)
    sizes = {
        int(number): (int(height), int(width))
        for number, (height, width) in zip(coco.image_ids, coco.sizes, strict=True)
    }
    labels = {int(number): label for label, number in enumerate(coco.category_ids, start=1)}
    has_masks = bool(found) and isinstance(found[0], dict) and "segmentation" in found[0]
    by_image: dict[int, list[_Entry]] = defaultdict(list)
    for index, values in enumerate(found):
        try:
            entry = _Entry.parse(values, sizes, labels, has_masks)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"predictions={path}: entry {index} cannot be evaluated, {reason}: give a file in"
                " COCO's result format, made on the images of data.val_annotations."
            ) from error
        by_image[entry.image_id].append(entry)
    return [
        _Entry.together(by_image[number], number, size, has_masks) for number, size in sizes.items()
    ]


@dataclass(frozen=True)
class _Entry:
    image_id: int
    label: int
    score: float
    box: tuple[float, ...]
    mask: bytes | None

    @classmethod
    def parse(
        cls,
        values: Any,
        sizes: Mapping[int, Size],
        labels: Mapping[int, int],
        has_mask: bool,
    ) -> _Entry:
        if not isinstance(values, dict):
            raise TypeError("it is no object with keys")
        image_id, category, score = values["image_id"], values["category_id"], values["score"]
        if image_id not in sizes:
            raise ValueError(f"image_id {image_id} is not in the annotations")
        if category not in labels:
            raise ValueError(f"category_id {category} is not in the annotations")
        mask = None
        if has_mask:
            mask = _code(values["segmentation"], sizes[image_id])
        elif "segmentation" in values:
            raise ValueError("it has a mask, and entry 0 has none")
        size = list(sizes[image_id])
        if has_mask and "bbox" not in values:
            box = tuple(coco_mask.toBbox({"size": size, "counts": mask}).tolist())
        else:
            box = tuple(float(side) for side in values["bbox"])
        if len(box) != 4 or not np.isfinite([score, *box]).all():
            raise ValueError(f"score {score} and bbox {list(box)} are not five numbers")
        return cls(image_id, labels[category], float(score), box, mask)

    @staticmethod
    def together(
        entries: Sequence[_Entry], image_id: int, size: Size, has_masks: bool
    ) -> ImagePredictions:
        return ImagePredictions(
            image_id,
            size,
            np.array([entry.label for entry in entries], dtype=np.int64),
            np.array([entry.score for entry in entries], dtype=np.float64),
            np.array([entry.box for entry in entries], dtype=np.float64).reshape(-1, 4),
            tuple(entry.mask or b"" for entry in entries) if has_masks else None,
        )


def _read_list(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no JSON: {error}"
        raise UserError(
            f"predictions={path} cannot be read ({reason}): give a file in COCO's result format."
        ) from error
    if not isinstance(content, list):
        raise UserError(
            f"predictions={path} holds no list: give a file in COCO's result format, a list with an"
            " entry for each object."
        )
    return content


def _code(segmentation: Any, size: Size) -> bytes:
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), str):
        raise ValueError("its segmentation is no compressed run-length code")
    if segmentation.get("size") != list(size):
        wrong = segmentation.get("size")
        raise ValueError(f"its mask is of size {wrong}, the image of {list(size)}")
    code = str(segmentation["counts"]).encode("ascii")
    if not covers(code, size):
        raise ValueError("its mask's run lengths do not add up to the image")
    return code


def _scale(original: Size, size: Size) -> Tensor:
    """What x0, y0, x1, y1 are multiplied with, in float32 as in torchvision's ``resize_boxes``."""
    height, width = (
        torch.tensor(after, dtype=torch.float32) / torch.tensor(before, dtype=torch.float32)
        for after, before in zip(original, size, strict=True)
    )
    return torch.stack((width, height, width, height))


def _xywh(boxes: Tensor) -> NDArray[np.float64]:
    corners: NDArray[np.float64] = boxes.double().numpy()
    return np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1)


def _paste(masks: Tensor, boxes: Tensor, size: Size, threshold: float) -> tuple[bytes, ...]:
    """Masks (D, S, S) of boxes (D, 4), x0, y0, x1, y1, as run-length codes of the whole image."""
    padded, scale = expand_masks(masks, _PADDING)
    corners = expand_boxes(boxes, scale).to(torch.int64).tolist()
    codes = []
    for mask, (x0, y0, x1, y1) in zip(padded, corners, strict=True):
        sides = (max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1))
        pixels = F.interpolate(mask[None, None], sides, mode="bilinear", align_corners=False)[0, 0]
        left, top = max(x0, 0), max(y0, 0)
        right, bottom = min(x1 + 1, size[1]), min(y1 + 1, size[0])
        inside = pixels[top - y0 : max(bottom, top) - y0, left - x0 : max(right, left) - x0]
        codes.append(encode_window((inside > threshold).numpy(), (left, top), size))
    return tuple(codes)
