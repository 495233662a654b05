"""Every image of a loader seen once, over all processes, and what was found compared with COCO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import nn

from attnorm import distributed
from attnorm.detection.average_precision import KINDS, AveragePrecision, evaluate
from attnorm.detection.batch import DetectionBatch
from attnorm.detection.predictions import ImagePredictions, from_detections
from attnorm.training.precision import Precision
from attnorm.training.task import BatchLoader


def predict(
    model: nn.Module, loader: BatchLoader, precision: Precision
) -> list[ImagePredictions] | None:
    """What ``model`` finds in all images of ``loader``, by image id, on rank 0; else None.

    Collective. Leaves the model in the mode in which it was.

    Raises:
        RuntimeError: an image was seen twice or by nobody.
    """
    own = run_model(model, loader, precision)
    return collect(own, loader.num_images)


@torch.inference_mode()
def run_model(
    model: nn.Module, loader: BatchLoader, precision: Precision
) -> list[ImagePredictions]:
    """What ``model`` finds in this process's images, in their order."""
    was_training = model.training
    model.eval()
    predictions = []
    try:
        for batch in loader.epoch(0):
            assert isinstance(batch, DetectionBatch)
            with precision.autocast():
                found = model(batch.images, batch.sizes)
            where = zip(found, batch.image_ids, batch.sizes, batch.original_sizes, strict=True)
            predictions += [from_detections(*parts) for parts in where]
    finally:
        model.train(was_training)
    return predictions


def collect(own: Sequence[ImagePredictions], num_images: int) -> list[ImagePredictions] | None:
    """Every process's predictions on rank 0, by image id; None on the others. Collective.

    Within an image the model's order stays.

    Raises:
        RuntimeError: they are not of ``num_images`` different images.
    """
    gathered = distributed.gather_objects(own)
    seen = Counter(image.image_id for share in gathered for image in share)
    twice = sorted(number for number, count in seen.items() if count > 1)
    if twice or len(seen) != num_images:
        raise RuntimeError(
            f"evaluated {len(seen)} images of a data set of {num_images}"
            + (f", {len(twice)} of them more than once: {twice[:3]}" if twice else "")
        )
    if distributed.rank() != 0:
        return None
    return sorted(
        (image for share in gathered for image in share), key=lambda image: image.image_id
    )


def evaluate_predictions(
    annotations: Path,
    predictions: Sequence[ImagePredictions],
    category_ids: Iterable[int],
    referee: str = "pycocotools",
) -> AveragePrecision:
    """Boxes, and masks where the predictions have some, against a file of COCO instances.

    Raises:
        UserError: as :func:`attnorm.detection.average_precision.evaluate`.
    """
    with_masks = all(image.masks is not None for image in predictions)
    kinds = KINDS if with_masks else KINDS[:1]
    return evaluate(annotations, predictions, list(category_ids), kinds, referee)
