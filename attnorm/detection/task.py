"""Detection and instance segmentation as a task: losses by branch, and the exact AP of COCO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from attnorm import distributed
from attnorm.config import AugmentConfig, CocoConfig, Config, DetectorConfig, HTCConfig
from attnorm.detection import loader as data
from attnorm.detection.average_precision import AveragePrecision, require_referee
from attnorm.detection.batch import DetectionBatch
from attnorm.detection.check import check_coco
from attnorm.detection.coco import read_split
from attnorm.detection.evaluation import evaluate_predictions, predict
from attnorm.detection.model import build_detector
from attnorm.detection.pictures import found_and_missed
from attnorm.detection.predictions import (
    ImagePredictions,
    read_predictions,
    write_predictions,
)
from attnorm.detection.weights import load_backbone
from attnorm.distributed import Placement
from attnorm.errors import UserError
from attnorm.training.precision import Precision
from attnorm.training.task import BatchLoader, ConfigurableTask, Metric, Metrics, StepOutput

# The twelve numbers that COCO's evaluation prints, in its order.
STATISTICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
KINDS = {"bbox": "box", "segm": "mask"}
# Losses of a network by the branch that they train; cascades add the number of the stage.
BRANCHES = {
    "rpn": ("loss_objectness", "loss_rpn_box_reg"),
    "class": ("loss_classifier",),
    "box": ("loss_box_reg",),
    "mask": ("loss_mask",),
    "semantic": ("loss_semantic",),
}
PICTURES = 4  # shown of each evaluation


class Detection(ConfigurableTask):
    """Boxes, masks and one of ``class_names`` for every object; batches are DetectionBatch.

    Attributes:
        category_ids: the data set's own number of each class.
    """

    sums: ClassVar = tuple(f"loss_{branch}" for branch in BRANCHES)
    train_metrics: ClassVar = {
        f"loss_{branch}": Metric(f"{branch} loss", digits=3, in_lines=False) for branch in BRANCHES
    }
    eval_metrics: ClassVar = {
        f"{kind}_{name}": Metric(f"{kind} {name}", digits=1, in_lines=name == "AP")
        for kind in KINDS.values()
        for name in STATISTICS
    }
    headline: ClassVar = "box_AP"
    lower_is_better: ClassVar = False

    def __init__(self, class_names: Sequence[str], category_ids: Sequence[int]) -> None:
        self.class_names, self.category_ids = list(class_names), list(category_ids)
        # Of the last evaluation, on rank 0.
        self._found: list[ImagePredictions] = []
        self._precision: AveragePrecision | None = None
        self._loader: data.DetectionLoader | None = None
        self._fingerprint: dict[str, Any] = {}

    # ------------------------------------------------------------------ assembly

    @classmethod
    def check(cls, config: Config, placement: Placement) -> Config:
        """See the base class; fills in the number of classes."""
        scenes, detector = _parts(config)
        _refuse(config, detector)
        require_referee(scenes.referee)
        check_coco(scenes, training=True)
        names, _ = data.categories(scenes)
        if scenes.num_classes not in (None, len(names)):
            raise UserError(
                f"data.num_classes={scenes.num_classes}, but the annotations have {len(names)}"
                " categories: leave it null."
            )
        detector = _with_semantic_classes(detector, scenes, len(names))
        with torch.device("meta"):  # costs no memory, and parts that do not fit show
            trial = build_detector(config.arch, config.norm, detector, len(names))
        if config.weights not in (None, "timm"):  # their names and shapes, that is
            load_backbone(trial.backbone, config.weights, config.arch, config.norm)
        scenes = replace(scenes, num_classes=len(names))
        return replace(config, data=scenes, detector=detector)

    @classmethod
    def num_train_images(cls, config: Config) -> int:
        """Images that hold something to train on."""
        return data.num_train_images(_parts(config)[0])

    @classmethod
    def from_data(cls, config: Config) -> Self:
        """For training: the classes are the categories of the annotations."""
        scenes, _ = _parts(config)
        task = cls(*data.categories(scenes))
        if distributed.rank() == 0:
            halves = {"train": True, "val": False}
            task._fingerprint = {
                name: read_split(scenes, training).fingerprint()
                for name, training in halves.items()
            }
        return task

    @classmethod
    def from_checkpoint(cls, config: Config, state: Mapping[str, Any], path: Path) -> Self:
        """For a trained model: the classes are those that it was trained on.

        Raises:
            UserError: the checkpoint does not say which.
        """
        if "class_names" not in state or "category_ids" not in state:
            raise UserError(f"checkpoint={path} names no categories: its task was another one.")
        return cls(state["class_names"], state["category_ids"])

    def build_model(self, config: Config, load_pretrained: bool = True) -> nn.Module:
        _, detector = _parts(config)
        weights = config.weights if load_pretrained else None
        classes = len(self.class_names)
        return build_detector(config.arch, config.norm, detector, classes, weights)

    def train_loader(self, config: Config, placement: Placement) -> data.DetectionLoader:
        scenes, detector = _parts(config)
        classes = {}
        if isinstance(detector, HTCConfig) and detector.semantic_branch:
            classes["semantic_classes"] = detector.semantic_classes
        return data.train_loader(
            scenes, placement, seed=config.seed, prefetch=config.loader.prefetch, **classes
        )

    def eval_loader(self, config: Config, placement: Placement) -> data.DetectionLoader:
        """The whole validation set, image by image.

        Raises:
            UserError: the data cannot be had, or has other categories than the model.
        """
        scenes, _ = _parts(config)
        require_referee(scenes.referee)
        check_coco(scenes, training=False)
        loader = data.eval_loader(scenes, placement, prefetch=config.loader.prefetch)
        unknown = sorted(set(loader.data.category_names) - set(self.class_names))
        if unknown or loader.data.category_ids.tolist() != self.category_ids:
            shown = ", ".join(unknown[:3]) or "the same names under other ids"
            raise UserError(
                f"data.val_annotations={scenes.val_annotations} has categories that the model was"
                f" not trained on ({shown}): evaluate it on annotations of its own categories."
            )
        return loader

    # ------------------------------------------------------------------ training and evaluation

    def loss(self, model: nn.Module, batch: DetectionBatch, step: int) -> StepOutput:
        losses: dict[str, Tensor] = model(batch.images, batch.sizes, batch.targets, batch.semantic)
        total = torch.stack([value.float() for value in losses.values()]).sum()
        count, zero = len(batch.sizes), total.new_zeros(())
        sums = {}
        for branch, prefixes in BRANCHES.items():
            parts = [v.detach().float() for k, v in losses.items() if k.startswith(prefixes)]
            sums[f"loss_{branch}"] = sum(parts, zero) * count
        return StepOutput(total, sums, count)

    def evaluate(
        self, model: nn.Module, loader: BatchLoader, precision: Precision, device: torch.device
    ) -> Metrics:
        """COCO's twelve numbers for boxes and for masks, in percent; None where nothing counts.

        Every image is seen alone and once, so the numbers depend neither on the batch size nor on
        the number of processes.
        """
        assert isinstance(loader, data.DetectionLoader)
        found = predict(model, loader, precision)
        self._loader = loader

        def compare() -> Metrics:
            assert found is not None, "rank 0 has everybody's"
            self._found = found
            self._precision = evaluate_predictions(
                loader.annotations, found, self.category_ids, loader.referee
            )
            return _metrics(self._precision)

        return {**distributed.from_main(compare), "images": loader.num_images}

    def fingerprint(self) -> dict[str, Any]:
        """Counts and a hash of names, sizes and boxes, of both halves."""
        return self._fingerprint

    def stored(self) -> dict[str, Any]:
        return {"class_names": self.class_names, "category_ids": self.category_ids}

    def report(self, folder: Path) -> dict[str, Any]:
        """``predictions.json`` in COCO's format, and the AP of every class."""
        assert self._precision is not None, "an evaluation comes first"
        path = folder / "predictions.json"
        write_predictions(path, self._found, self.category_ids)
        classes = _by_class(self._precision, self.class_names, self.category_ids)
        return {"predictions": str(path), "AP_by_class": classes}

    def pictures(self) -> dict[str, Tensor]:
        """What was found and missed in the first images that hold something."""
        if self._loader is None or not self._found:
            return {}
        coco = self._loader.data
        shown = [found for found in self._found if coco.has_objects(found.image_id)][:PICTURES]
        return {
            f"val/{found.image_id}": torch.from_numpy(
                found_and_missed(coco, found, self.class_names)
            )
            for found in shown
        }


def evaluate_file(path: Path, config: Config) -> tuple[Metrics, dict[str, dict[str, float | None]]]:
    """Metrics, and AP by class, of a file in COCO's result format.

    Raises:
        UserError: the file, or the validation annotations of ``config.data``, cannot be had.
    """
    if not isinstance(config.data, CocoConfig):
        raise UserError(f"data={config.data.name} has no boxes: use data=coco or digit_scenes.")
    coco = read_split(config.data, training=False)
    found = read_predictions(path, coco)
    ids = coco.category_ids.tolist()
    precision = evaluate_predictions(coco.annotations, found, ids, config.data.referee)
    metrics: Metrics = {**_metrics(precision), "images": len(coco)}
    return metrics, _by_class(precision, coco.category_names, ids)


def _metrics(precision: AveragePrecision) -> Metrics:
    return {
        f"{name}_{key}": precision.statistics.get(kind, {}).get(key)
        for kind, name in KINDS.items()
        for key in STATISTICS
    }


def _by_class(
    precision: AveragePrecision, names: Sequence[str], ids: Sequence[int]
) -> dict[str, dict[str, float | None]]:
    return {
        name: {KINDS[kind]: found.get(number) for kind, found in precision.per_category.items()}
        for name, number in zip(names, ids, strict=True)
    }


def _parts(config: Config) -> tuple[CocoConfig, DetectorConfig]:
    """Data and detector of a config.

    Raises:
        UserError: it has none, or data of another kind.
    """
    if not isinstance(config.data, CocoConfig):
        raise UserError(
            f"data={config.data.name} has no boxes: task=detection trains on data=coco or"
            " digit_scenes."
        )
    if config.detector is None:
        raise UserError(
            "task=detection needs a detector: detector=mask_rcnn, cascade_mask_rcnn or htc."
        )
    return config.data, config.detector


def _refuse(config: Config, detector: DetectorConfig) -> None:
    """What classification offers and detection does not."""
    for wrong, key, way_out in (
        (config.loader.name not in ("auto", "torch"), "loader.name", "use loader=torch"),
        (bool(config.arch.pretrained), "arch.pretrained", "use weights=timm or weights=FILE"),
        (config.train.label_smoothing > 0, "train.label_smoothing", "leave it 0"),
        (config.train.loss != "cross_entropy", "train.loss", "leave it cross_entropy"),
        (config.augment != AugmentConfig(), "augment.name", "use augment=none"),
        (
            config.train.sync_bn and detector.freeze != "none",
            "train.sync_bn",
            "leave it false, or set detector.freeze=none",
        ),
        (config.compile, "compile", "leave it false: every image has its own size"),
    ):
        if wrong:
            part, _, name = key.rpartition(".")
            value = getattr(getattr(config, part) if part else config, name)
            raise UserError(f"{key}={value} is not for task=detection: {way_out}.")


def _with_semantic_classes(
    detector: DetectorConfig, scenes: CocoConfig, classes: int
) -> DetectorConfig:
    if not isinstance(detector, HTCConfig) or not detector.semantic_branch:
        return replace(detector)
    if scenes.semantic is None:
        raise UserError(
            "detector.semantic_branch=true learns from maps of the whole image: give"
            " data.semantic=stuffthingmaps (a folder under data.root) or data.semantic=things (made"
            " from the instances), or detector.semantic_branch=false."
        )
    if scenes.semantic == "things":  # the background, and the classes
        return replace(detector, semantic_classes=classes + 1)
    return detector
