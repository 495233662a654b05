"""The task: losses, and single-crop errors that are exact on any machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from attnorm import distributed
from attnorm.classification.mixing import draw_mix, mix_images, mix_targets
from attnorm.config import AugmentConfig, Config, LabelledImagesConfig, TrainConfig
from attnorm.config.checks import require_choice
from attnorm.data import build as data
from attnorm.data.fingerprint import in_background
from attnorm.data.imagenet_labels import SUBSETS, reassessed_labels, subset_columns
from attnorm.data.loader import Loader
from attnorm.distributed import Placement
from attnorm.errors import UserError
from attnorm.models.build import build_model
from attnorm.training.precision import Precision
from attnorm.training.task import BatchLoader, ConfigurableTask, Metric, Metrics, StepOutput


class Classification(ConfigurableTask):
    """One of ``class_names`` for each image; batches are (images, labels)."""

    sums: ClassVar = ("correct",)
    train_metrics: ClassVar = {"top1_error": Metric("top-1 error", "top-1", unit=" %")}
    eval_metrics: ClassVar = {
        "loss": Metric("loss", digits=4),
        "top1_error": Metric("top-1 error", "top-1", unit=" %"),
        "top5_error": Metric("top-5 error", "top-5", unit=" %"),
    }
    headline: ClassVar = "top1_error"

    def __init__(
        self,
        class_names: Sequence[str],
        train: TrainConfig | None = None,
        augment: AugmentConfig | None = None,
        *,
        seed: int = 0,
        flip_tta: bool = False,
    ) -> None:
        """
        Args:
            train, augment, seed: for the loss; what they mix is drawn from seed and step.
            flip_tta: evaluate the mean of the logits of an image and its mirror image.
        """
        self.class_names = list(class_names)
        self._train, self._augment = train or TrainConfig(), augment or AugmentConfig()
        self._seed, self._flip_tta = seed, flip_tta
        self._criterion = nn.CrossEntropyLoss(label_smoothing=self._train.label_smoothing)
        self._soft_criterion: nn.Module = SoftTargetCrossEntropy()
        if self._train.loss == "binary_cross_entropy":
            threshold = self._train.target_threshold
            self._soft_criterion = BinaryCrossEntropy(smoothing=0, target_threshold=threshold)
        self._fingerprint: Callable[[], dict[str, Any]] = dict
        # Of other test sets: the only classes that count, and the images' several labels.
        self._columns: Tensor | None = None
        self._several: Tensor | None = None

    def grade_by(self, config: Config, labels: str, classes: str | None) -> None:
        """How evaluations are graded from now on.

        Args:
            labels: original, or real: the reassessed labels of ILSVRC's validation set, where any
                of an image's classes is right, and images without one do not count.
            classes: imagenet_a or imagenet_r: the 200 classes of these test sets, the best of which
                is the answer; None for all.

        Raises:
            UserError: no such labels or classes, or they do not fit the images or the model.
        """
        require_choice("labels", labels, ("original", "real"))
        if classes is not None:
            require_choice("classes", classes, SUBSETS)
            self._columns = torch.from_numpy(subset_columns(classes, self.class_names))
        if labels == "real":
            images = data.eval_images(labelled_images(config))
            self._several = torch.from_numpy(reassessed_labels(images, self.class_names))

    # ------------------------------------------------------------------ assembly

    @classmethod
    def check(cls, config: Config, placement: Placement) -> Config:
        """See the base class; fills in the number of classes."""
        if config.detector is not None:
            raise UserError(
                f"detector={config.detector.name} needs task=detection and data of boxes, such as"
                " data=coco."
            )
        data.check(labelled_images(config), config.loader, placement, augment=config.augment)
        classes = data.num_classes(labelled_images(config), config.loader)
        with torch.device("meta"):  # costs no memory, and names that do not fit show
            build_model(config.arch, config.norm, classes, load_pretrained=False)
        return replace(config, data=replace(config.data, num_classes=classes))

    @classmethod
    def num_train_images(cls, config: Config) -> int:
        return data.num_images(labelled_images(config), config.loader, training=True)

    @classmethod
    def from_data(cls, config: Config) -> Self:
        """For training: the classes are those of the data."""
        images = labelled_images(config)
        task = cls._of(config, data.class_names(images, config.loader))
        if distributed.rank() == 0:
            task._fingerprint = in_background(lambda: data.fingerprint_of(images, config.loader))
        return task

    @classmethod
    def from_checkpoint(cls, config: Config, state: Mapping[str, Any], path: Path) -> Self:
        """For a trained model: the classes are those that it was trained on.

        Raises:
            UserError: the checkpoint does not say which.
        """
        if "class_names" not in state:
            raise UserError(f"checkpoint={path} names no classes: its task was another one.")
        return cls._of(config, state["class_names"])

    @classmethod
    def _of(cls, config: Config, names: Sequence[str]) -> Self:
        flip_tta = labelled_images(config).flip_tta
        return cls(names, config.train, config.augment, seed=config.seed, flip_tta=flip_tta)

    def build_model(self, config: Config, load_pretrained: bool = True) -> nn.Module:
        """(N, 3, H, W) to logits (N, classes)."""
        return build_model(
            config.arch, config.norm, len(self.class_names), load_pretrained=load_pretrained
        )

    def train_loader(self, config: Config, placement: Placement) -> Loader:
        images = labelled_images(config)
        return data.build_train_loader(
            images,
            config.loader,
            placement,
            seed=config.seed,
            augment=config.augment,
            epochs=config.epochs,
        )

    def eval_loader(self, config: Config, placement: Placement) -> Loader:
        """The whole validation set, labelled by the task's own classes.

        Raises:
            UserError: the data cannot be had, or has other classes.
        """
        data.check(labelled_images(config), config.loader, placement, training=False)
        return data.build_eval_loader(
            labelled_images(config),
            config.loader,
            placement,
            class_names=self.class_names,
            numbered=self._several is not None,
        )

    # ------------------------------------------------------------------ training and evaluation

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> StepOutput:
        """Of mixed images, the label with the greater share counts as the right one."""
        images, labels = batch
        mix = draw_mix(self._augment, self._seed, step, *images.shape[-2:])
        if mix is not None:
            images = mix_images(images, mix)
        logits = model(images)
        if mix is None and self._train.loss == "cross_entropy":
            loss = self._criterion(logits, labels)
        else:
            smoothing = self._train.label_smoothing
            targets, labels = mix_targets(labels, logits.shape[1], smoothing, mix)
            loss = self._soft_criterion(logits.float(), targets)
        correct = (logits.detach().argmax(1) == labels).sum()
        return StepOutput(loss, {"correct": correct}, labels.numel())

    def train_values(self, means: Mapping[str, float]) -> Metrics:
        return {"top1_error": 100.0 * (1.0 - means["correct"])}

    @torch.inference_mode()
    def evaluate(
        self, model: nn.Module, loader: BatchLoader, precision: Precision, device: torch.device
    ) -> Metrics:
        """Errors in percent, mean cross-entropy, and the number of images that they are over.

        ``top5_error`` is None with fewer than five classes, where it would say nothing.
        """
        was_training = model.training
        model.eval()
        # Loss, correct at 1, correct at 5, counted.
        totals = torch.zeros(4, dtype=distributed.sum_dtype(device), device=device)
        images_seen = num_classes = 0
        for images, labels in loader.epoch(0):
            with precision.autocast():
                logits = model(images)
                if self._flip_tta:
                    logits = (logits + model(images.flip(3))) / 2
            totals += self._grades(logits.float(), labels).to(totals.dtype)
            num_classes = logits.shape[1]
            images_seen += len(labels)
        model.train(was_training)
        # One sum over processes; the count travels with it, once.
        sums = torch.cat((totals, totals.new_full((1,), images_seen)))
        loss_sum, top1, top5, counted, seen = distributed.all_reduce_sum(sums).tolist()
        if int(seen) != loader.num_images:
            raise RuntimeError(f"evaluated {int(seen)} images of a data set of {loader.num_images}")
        if not counted:
            raise UserError("None of these images has a label that the model knows.")
        return {
            "loss": loss_sum / counted,
            "top1_error": 100.0 * (counted - top1) / counted,
            "top5_error": 100.0 * (counted - top5) / counted if num_classes >= 5 else None,
            "images": int(counted),
        }

    def _grades(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sums over a batch: cross-entropy, correct at 1, correct at 5, images that count."""
        if self._columns is not None:
            others = torch.ones_like(logits, dtype=torch.bool)
            others[:, self._columns.to(logits.device)] = False
            logits = logits.masked_fill(others, -torch.inf)
        answers = logits.topk(min(5, logits.shape[1])).indices
        if self._several is None:
            right = labels[:, None]
        else:  # labels are the images' numbers
            right = self._several.to(labels.device)[labels]
        hits = (answers[:, :, None] == right[:, None, :]).any(2)
        counts = right >= 0
        # The loss of several labels is the mean of theirs; those without one do not count.
        log_probabilities = logits.log_softmax(1).gather(1, right.clamp(min=0))
        losses = -log_probabilities.where(counts, 0).sum(1) / counts.sum(1).clamp(min=1)
        return torch.stack((losses.sum(), hits[:, 0].sum(), hits.any(1).sum(), counts.any(1).sum()))

    def fingerprint(self) -> dict[str, Any]:
        """Counts and hashes of names and sizes, of the training and the evaluation images."""
        return self._fingerprint()

    def stored(self) -> dict[str, Any]:
        return {"class_names": self.class_names}


def labelled_images(config: Config) -> LabelledImagesConfig:
    """The data of a config whose images have one class each.

    Raises:
        UserError: they are of another kind.
    """
    if not isinstance(config.data, LabelledImagesConfig):
        raise UserError(
            f"data={config.data.name} has no class for each image: task=classification trains on"
            " data=imagenet, folder or digits; task=detection on this one."
        )
    return config.data
