"""Regions: which of them the heads are trained on, how they move, and which become detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, remove_small_boxes

from attnorm.config import DetectorConfig
from attnorm.detection.batch import Detections, Size, Targets

OFFSET_STDS = (0.1, 0.2)  # of centres and of logarithmic sides (Girshick, 2015; Detectron)
SMALLEST_SIDE = 0.01  # of a detection, in pixels, as in torchvision


@dataclass(frozen=True)
class Regions:
    """Boxes that heads are trained on, and what each holds; a list has an entry for each image.

    Attributes:
        boxes: float32 (S, 4): x0, y0, x1, y1 in pixels of the network's input.
        labels: int64 (S,), 0 for the background.
        matched: int64 (S,), the object of the image that a box holds; of no meaning for background.
        from_targets: bool (S,), whether a box is an object's own rather than a proposal.
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    matched: list[Tensor]
    from_targets: list[Tensor]

    def take(self, indices: Sequence[Tensor]) -> Regions:
        """Those at ``indices`` of each image."""

        def taken(values: list[Tensor]) -> list[Tensor]:
            return [value[index] for value, index in zip(values, indices, strict=True)]

        fields = (self.boxes, self.labels, self.matched, self.from_targets)
        return Regions(*map(taken, fields))

    def positive(self) -> Regions:
        """Those that hold an object."""
        return self.take([torch.where(labels > 0)[0] for labels in self.labels])


class RegionSampler:
    """Matches proposals with objects and draws some, with torchvision's parts and its draws.

    The objects' own boxes are added to the proposals, so that there is something to learn from
    before proposals are any good.

    Args:
        overlap: IoU from which a box holds an object; all others are background.
        config: how many boxes of an image are drawn, and how many of these may hold objects.
    """

    def __init__(self, overlap: float, config: DetectorConfig) -> None:
        self._matcher = Matcher(overlap, overlap, allow_low_quality_matches=False)
        self._draw = BalancedPositiveNegativeSampler(config.box_samples, config.box_positive)

    @torch.no_grad()
    def __call__(self, proposals: Sequence[Tensor], targets: Sequence[Targets]) -> Regions:
        """Regions of each image, in the order of its proposals, objects' own boxes last.

        Args:
            proposals: float32 (R, 4) of each image.
            targets: of each image; one without objects gives background alone.
        """
        pairs = list(zip(proposals, targets, strict=True))
        boxes = [torch.cat((own, target.boxes)) for own, target in pairs]
        matches = [self._match(b, target) for b, target in zip(boxes, targets, strict=True)]
        candidates = Regions(
            boxes,
            [labels for labels, _ in matches],
            [matched for _, matched in matches],
            [
                torch.arange(len(b), device=b.device) >= len(b) - len(t.boxes)
                for b, t in zip(boxes, targets, strict=True)
            ],
        )
        positive, negative = self._draw(candidates.labels)
        drawn = [torch.where(p | n)[0] for p, n in zip(positive, negative, strict=True)]
        return candidates.take(drawn)

    def _match(self, boxes: Tensor, target: Targets) -> tuple[Tensor, Tensor]:
        """Label, and object, of each box."""
        if len(target.boxes) == 0:
            nothing = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
            return nothing, nothing
        found = self._matcher(box_iou(target.boxes, boxes))
        matched = found.clamp(min=0)
        return torch.where(found >= 0, target.labels[matched], 0), matched


def box_coder(offset_stds: Sequence[float] = OFFSET_STDS) -> BoxCoder:
    """Boxes as offsets from regions, divided by standard deviations of centres and of sides."""
    centres, sides = offset_stds
    return BoxCoder((1 / centres, 1 / centres, 1 / sides, 1 / sides))


def offsets_by_class(offsets: Tensor) -> Tensor:
    """(R, 4 · classes) to float32 (R, classes, 4); one class where all share their offsets."""
    return offsets.float().reshape(len(offsets), offsets.shape[1] // 4, 4)


@torch.no_grad()
def refine(
    coder: BoxCoder, offsets: Tensor, boxes: Sequence[Tensor], sizes: Sequence[Size]
) -> list[Tensor]:
    """Boxes of each image moved by offsets that are the same for all classes, and clipped.

    Args:
        coder: what offsets mean.
        offsets: (sum of R, 4).
        boxes: float32 (R, 4) of each image.
        sizes: of the images.
    """
    moved = coder.decode_single(offsets.float(), torch.cat(list(boxes)))
    # Offsets that are no numbers make losses that are none, which the training answers; as boxes
    # they would address memory that is not theirs.
    moved = moved.nan_to_num().split([len(b) for b in boxes])
    return [clip_boxes_to_image(b, size) for b, size in zip(moved, sizes, strict=True)]


def select_detections(
    logits: Tensor,
    offsets: Tensor,
    boxes: Sequence[Tensor],
    sizes: Sequence[Size],
    coder: BoxCoder,
    config: DetectorConfig,
) -> list[Detections]:
    """The detections of each image, best first, without masks.

    As in torchvision: every class of a region whose probability is above
    ``config.score_threshold`` is a candidate, those of a class suppress each other
    (``config.nms``), and the best ``config.detections_per_image`` of all are kept. Only
    candidates are decoded. Of equal scores the candidate of the earlier region, then class, is
    first.

    Args:
        logits: (sum of R, classes), the background first.
        offsets: (sum of R, 4), or four for each class.
        boxes: float32 (R, 4), regions of each image.
        sizes: of the images.
        coder: what offsets mean.
        config: thresholds.
    """
    counts = [len(b) for b in boxes]
    probabilities = logits.float().softmax(1).split(counts)
    by_class = offsets_by_class(offsets).split(counts)
    parts = zip(probabilities, by_class, boxes, sizes, strict=True)
    return [_select(*part, coder, config) for part in parts]


def _select(
    probabilities: Tensor,
    offsets: Tensor,
    regions: Tensor,
    size: Size,
    coder: BoxCoder,
    config: DetectorConfig,
) -> Detections:
    rows, classes = torch.where(probabilities[:, 1:] > config.score_threshold)
    labels = classes + 1
    scores = probabilities[rows, labels]
    chosen = offsets[rows, labels] if offsets.shape[1] > 1 else offsets[rows, 0]
    boxes = clip_boxes_to_image(coder.decode_single(chosen, regions[rows]), size)
    large = remove_small_boxes(boxes, SMALLEST_SIDE)
    boxes, scores, labels = boxes[large], scores[large], labels[large]
    kept = batched_nms(boxes, scores, labels, config.nms).sort().values
    best = scores[kept].sort(descending=True, stable=True).indices
    kept = kept[best[: config.detections_per_image]]
    return Detections(boxes[kept], scores[kept], labels[kept])
