"""Single-crop top-1 and top-5 error over a whole data set, exact on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnorm import distributed
from attnorm.training.precision import Precision


class BatchLoader(Protocol):
    """What training and evaluation need of a loader: batches of (images, labels) on the device."""

    name: str
    skipped: int  # broken images that were replaced

    @property
    def num_images(self) -> int:
        """Images in the data set, over all processes."""

    def __len__(self) -> int:
        """Batches of an epoch on this process."""

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from ``start_batch`` on."""


@dataclass(frozen=True)
class Evaluation:
    """Errors in percent, mean cross-entropy, and the number of images that they are over."""

    top1_error: float
    top5_error: float | None  # None with fewer than five classes, where it would say nothing
    loss: float
    images: int


@dataclass(frozen=True)
class Score:
    """An evaluation, the epoch (counted from 1) after which it was made, and the step."""

    epoch: int
    step: int
    top1_error: float
    top5_error: float | None
    loss: float
    ema_top1_error: float | None = None  # of the averaged weights, where there are any

    @classmethod
    def of(
        cls, epoch: int, step: int, evaluation: Evaluation, averaged: Evaluation | None = None
    ) -> Score:
        top1, top5, loss = evaluation.top1_error, evaluation.top5_error, evaluation.loss
        return cls(epoch, step, top1, top5, loss, averaged.top1_error if averaged else None)


def score_line(scores: Sequence[Score]) -> str:
    """The newest of ``scores``, and the best, in one line."""
    last, best = scores[-1], min(scores, key=lambda score: (score.top1_error, score.step))
    top5 = "n/a" if last.top5_error is None else f"{last.top5_error:.2f} %"
    ema = "" if last.ema_top1_error is None else f"  EMA top-1 error {last.ema_top1_error:.2f} %"
    return (
        f"val loss {last.loss:.4f}  top-1 error {last.top1_error:.2f} %  top-5 error {top5}{ema}"
        f"  (best top-1 error {best.top1_error:.2f} % after epoch {best.epoch})"
    )


@torch.inference_mode()
def evaluate(
    model: nn.Module, loader: BatchLoader, precision: Precision, device: torch.device
) -> Evaluation:
    """Evaluate ``model`` on every image of ``loader``, each counted once.

    Raises:
        RuntimeError: the processes together did not see exactly ``loader.num_images`` images.
    """
    was_training = model.training
    model.eval()
    # Loss, correct at 1, correct at 5, images: float64 counts exactly to 2**53.
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    num_classes = 0
    for images, labels in loader.epoch(0):
        with precision.autocast():
            logits = model(images)
        logits = logits.float()
        num_classes = logits.shape[1]
        hits = logits.topk(min(5, num_classes)).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack(
            (loss.double(), hits[:, 0].sum(), hits.sum(), loss.new_tensor(len(labels)))
        )
    model.train(was_training)
    distributed.all_reduce_sum(totals)
    loss_sum, top1, top5, seen = totals.tolist()
    if int(seen) != loader.num_images:
        raise RuntimeError(f"evaluated {int(seen)} images of a data set of {loader.num_images}")
    return Evaluation(
        top1_error=100.0 * (1.0 - top1 / seen),
        top5_error=100.0 * (1.0 - top5 / seen) if num_classes >= 5 else None,
        loss=loss_sum / seen,
        images=int(seen),
    )
