"""What ``benchmarks detection`` holds the detector against: torchvision's parts in a plain loop.

  python -m benchmarks.detection_rival train --root COCO --start FILE --weights FILE ...
  python -m benchmarks.detection_rival eval --root COCO --start FILE ...

``train`` is one epoch from the weights of ``--start``, one evaluation, and the weights written;
``eval`` evaluates those of ``--start``. They are a detector's of this project: how many regions a
head has to look at depends on what it has learnt, so that both do the same work only with the same
weights.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from attnorm.training.precision import Precision, resolve_precision
from benchmarks.measure import PRECISIONS, default_device

LR = 0.01
Batch = tuple[Sequence[torch.Tensor], Sequence[dict[str, Any]]]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "eval"))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    return parser.parse_args(arguments)


def pictures(root: Path, split: str, training: bool) -> Dataset[Any]:
    """Float pictures, and boxes, labels and masks of their objects."""
    steps: list[nn.Module] = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    if training:
        steps = [v2.RandomHorizontalFlip(), *steps, v2.SanitizeBoundingBoxes()]
    dataset = CocoDetection(
        str(root / f"{split}2017"),
        str(root / "annotations" / f"instances_{split}2017.json"),
        transforms=v2.Compose(steps),
    )
    if training:  # those with objects
        dataset.ids = [i for i in dataset.ids if dataset.coco.getAnnIds([i], iscrowd=False)]
    keys = ("boxes", "labels", "masks") if training else ("image_id",)
    # Classes are numbered without gaps, from 1 on.
    numbers = {name: number for number, name in enumerate(sorted(dataset.coco.cats), start=1)}
    for annotation in dataset.coco.anns.values() if training else ():
        annotation["category_id"] = numbers[annotation["category_id"]]
    wrapped: Dataset[Any] = wrap_dataset_for_transforms_v2(dataset, target_keys=keys)
    return wrapped


def batches(args: argparse.Namespace, split: str, training: bool) -> DataLoader[Batch]:
    return DataLoader(
        pictures(args.root, split, training),
        batch_size=args.batch_size if training else 1,
        shuffle=training,
        num_workers=args.workers,
        collate_fn=lambda samples: tuple(zip(*samples, strict=True)),
    )


def build(side: int, weights: dict[str, torch.Tensor]) -> nn.Module:
    """torchvision's Mask R-CNN that learns as a whole, with our detector's ``weights``."""
    classes = len(weights["roi_heads.box_predictor.cls_score.weight"])
    model: nn.Module = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=classes
    )
    # The same tensors in the same order, some under other names.
    names = model.state_dict().keys()
    model.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    assert isinstance(model.transform, GeneralizedRCNNTransform)
    model.transform.min_size, model.transform.max_size = (side,), side * 1333 // 800
    return model


def train(
    model: nn.Module, loader: DataLoader[Batch], precision: Precision, device: torch.device
) -> None:
    """One epoch, the rate falling along half a cosine."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4)
    model.train()
    for step, (images, targets) in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * step / len(loader)))
        inputs = [image.to(device) for image in images]
        wanted = [{key: value.to(device) for key, value in t.items()} for t in targets]
        with precision.autocast():
            loss = sum(model(inputs, wanted).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def evaluate(
    model: nn.Module, loader: DataLoader[Batch], precision: Precision, device: torch.device
) -> None:
    """COCO's numbers for boxes and for masks."""
    model.eval()
    dataset: Any = loader.dataset
    truth: COCO = dataset.coco
    categories = [0, *sorted(truth.cats)]
    found: list[dict[str, Any]] = []
    for images, targets in loader:
        with precision.autocast():
            outputs = model([image.to(device) for image in images])
        for target, output in zip(targets, outputs, strict=True):
            found += as_results(target["image_id"], output, categories)
    sys.stdout.write(f"{len(found)} detections\n")
    if not found:  # loadRes wants to see a first one
        return
    for kind in ("bbox", "segm"):
        judge = COCOeval(truth, truth.loadRes(found), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()


def as_results(
    image: int, output: dict[str, torch.Tensor], categories: Sequence[int]
) -> list[dict[str, Any]]:
    """One picture's detections in COCO's result format; ``categories`` are ids by label."""
    boxes = output["boxes"].clone()
    boxes[:, 2:] -= boxes[:, :2]
    masks = (output["masks"][:, 0] > 0.5).cpu().numpy().astype(np.uint8)
    codes = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0)))
    parts = (boxes.tolist(), output["scores"].tolist(), output["labels"].tolist(), codes)
    return [
        {
            "image_id": image,
            "bbox": box,
            "score": score,
            "category_id": categories[label],
            "segmentation": code,
        }
        for box, score, label, code in zip(*parts, strict=True)
    ]


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    torch.manual_seed(0)
    device = default_device()
    precision = resolve_precision(args.precision, device)
    start = torch.load(args.start, weights_only=True)
    model = build(args.side, start.get("model", start)).to(device)
    if args.what == "train":
        train(model, batches(args, "train", training=True), precision, device)
        torch.save(model.state_dict(), args.weights)
    evaluate(model, batches(args, "val", training=False), precision, device)


if __name__ == "__main__":
    main(sys.argv[1:])
