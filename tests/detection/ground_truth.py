"""Shapes in COCO's format, drawn at random, and predictions that come near to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnorm.detection.predictions import ImagePredictions
from attnorm.detection.run_lengths import encode_window

CATEGORY_IDS = [3, 7, 90]  # as in COCO: neither from 1 on nor without gaps
SIZE = (200, 260)


def uncompressed(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Run lengths down the columns, zeros first, counted one by one."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if bool(pixel) != value:
            value = not value
            counts.append(0)
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def write_truth(path: Path, images: int = 8) -> dict[str, Any]:
    """Triangles as polygons, ellipses as run lengths, a crowd in every third image, one empty."""
    random = np.random.default_rng(0)
    height, width = SIZE
    rows, columns = np.mgrid[:height, :width]
    annotations: list[dict[str, Any]] = []

    def add(image: int, crowd: bool = False) -> None:
        scale = random.choice([8, 40, 150])
        w, h = (scale * random.uniform(0.7, 1.3, 2)).round(1)
        x, y = random.uniform(0, width - w), random.uniform(0, height - h)
        area, segmentation = w * h / 2, [[x, y, x + w, y, x + w / 2, y + h]]
        if crowd or random.random() < 0.4:
            middle = ((columns + 0.5 - x) / w - 0.5) ** 2 + ((rows + 0.5 - y) / h - 0.5) ** 2
            mask = middle <= 0.25
            area, segmentation = float(mask.sum()), uncompressed(mask)
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": int(random.choice(CATEGORY_IDS[:2])),  # nothing of the third
                "bbox": [x, y, w, h],
                "area": area,
                "segmentation": segmentation,
                "iscrowd": int(crowd),
            }
        )

    for image in range(1, images):  # none in the last
        for _ in range(random.integers(2, 9)):
            add(10 * image)
        if image % 3 == 0:
            add(10 * image, crowd=True)
    truth = {
        "images": [
            {"id": 10 * i, "file_name": f"{i}.jpg", "height": height, "width": width}
            for i in range(1, images + 1)
        ],
        "categories": [{"id": i, "name": f"shape {i}"} for i in CATEGORY_IDS],
        "annotations": annotations,
    }
    path.write_text(json.dumps(truth))
    return truth


def near_predictions(truth: dict[str, Any], noise: float = 0.1) -> list[ImagePredictions]:
    """Shifted boxes filled with ellipses, some of the wrong class, twice or of nothing; ties."""
    random = np.random.default_rng(1)
    height, width = SIZE
    predictions = []
    for image in truth["images"]:
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        corners, labels = [], []
        for annotation in [*own, *own[::2]]:
            x, y, w, h = annotation["bbox"]
            shift = np.array([w, h, w, h]) * random.normal(0, noise, 4)
            corners.append(np.array([x, y, x + w, y + h]) + shift)
            labels.append(CATEGORY_IDS.index(annotation["category_id"]) + 1)
        for _ in range(3):
            x, y = random.uniform(0, 100, 2)
            corners.append(np.array([x, y, x + 30, y + 20]))
            labels.append(int(random.integers(1, 4)))
        boxes = np.array(corners).astype(np.float32).astype(np.float64)
        boxes = boxes.clip(0, [width, height, width, height])
        boxes[:, 2:] = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
        scores = random.integers(1, 10, len(labels)) / np.float64(10)
        order = np.argsort(-scores, kind="stable")
        masks = []
        for x, y, w, h in boxes.astype(int)[order]:
            rows, columns = np.mgrid[: min(h, height - y), : min(w, width - x)]
            middle = ((columns + 0.5) / max(w, 1) - 0.5) ** 2 + (
                (rows + 0.5) / max(h, 1) - 0.5
            ) ** 2
            masks.append(encode_window(middle <= 0.25, (x, y), SIZE))
        predictions.append(
            ImagePredictions(
                image["id"],
                SIZE,
                np.array(labels)[order],
                scores[order],
                boxes[order],
                tuple(masks),
            )
        )
    return predictions
