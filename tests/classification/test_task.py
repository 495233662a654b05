"""Evaluation against a count by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from attnorm.classification import Classification
from attnorm.training.precision import resolve_precision
from attnorm.training.task import Metrics
from tests.training.memory import MemoryLoader, small_network, stripes

CPU = torch.device("cpu")
FP32 = resolve_precision("fp32", CPU)


def _evaluate(model: nn.Module, loader: MemoryLoader) -> Metrics:
    return Classification([]).evaluate(model, loader, FP32, CPU)


class _Table(nn.Module):
    """Logits that are looked up by the first pixel of an image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def _indexed(logits: Tensor, labels: Tensor, batch_size: int) -> tuple[nn.Module, MemoryLoader]:
    images = torch.arange(len(labels), dtype=torch.float32)[:, None, None, None].expand(-1, 3, 1, 1)
    return _Table(logits), MemoryLoader(images, labels, batch_size, shuffle=False)


def test_errors_and_loss_equal_a_count_by_hand() -> None:
    ranks = [0, 0, 0, 1, 4, 5, 6, 0, 2, 0, 3]  # place of the right class in each image's ranking
    labels = torch.tensor([3, 1, 4, 1, 5, 6, 2, 6, 5, 3, 0])
    logits = torch.empty(len(ranks), 7)
    for row, (place, label) in enumerate(zip(ranks, labels.tolist(), strict=True)):
        others = [c for c in range(7) if c != label]
        ranking = [*others[:place], label, *others[place:]]
        logits[row, ranking] = torch.arange(7, 0, -1, dtype=torch.float32)
    result = _evaluate(*_indexed(logits, labels, 4))
    assert result["images"] == 11
    assert result["top1_error"] == pytest.approx(100 * 6 / 11)
    assert result["top5_error"] == pytest.approx(100 * 2 / 11)
    by_hand = -(logits.double().log_softmax(1)[torch.arange(11), labels]).mean()
    assert result["loss"] == pytest.approx(float(by_hand), rel=1e-6)


def test_top5_is_not_applicable_below_five_classes() -> None:
    model, loader = _indexed(torch.eye(4), torch.arange(4), 3)
    result = _evaluate(model, loader)
    assert (result["top1_error"], result["top5_error"]) == (0.0, None)
    model, loader = _indexed(torch.eye(5), torch.arange(5), 3)
    assert _evaluate(model, loader)["top5_error"] == 0.0


def test_evaluation_uses_running_statistics_and_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = small_network(5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = stripes(23, 5)
    one = _evaluate(model, MemoryLoader(images, labels, 1, shuffle=False))
    all_at_once = _evaluate(model, MemoryLoader(images, labels, 23, shuffle=False))
    assert one["top1_error"] == all_at_once["top1_error"]
    assert one["loss"] == pytest.approx(all_at_once["loss"], rel=1e-5)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class _Short(MemoryLoader):
    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        yield from list(super().epoch(epoch))[:-1]


def test_a_loader_that_loses_images_is_a_bug_that_shows() -> None:
    images, labels = stripes(10, 5)
    with pytest.raises(RuntimeError, match="evaluated 8 images of a data set of 10"):
        _evaluate(small_network(5), _Short(images, labels, 4, shuffle=False))


def test_mirror_images_are_averaged_in_if_wanted() -> None:
    torch.manual_seed(0)
    model = small_network(5).eval()
    images, labels = torch.randn(9, 3, 8, 8), torch.arange(9) % 5
    loader = MemoryLoader(images, labels, 4, shuffle=False)
    flipped = Classification([*"abcde"], flip_tta=True).evaluate(model, loader, FP32, CPU)
    with torch.inference_mode():
        logits = (model(images) + model(images.flip(3))) / 2
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert flipped["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert flipped["loss"] != pytest.approx(_evaluate(model, loader)["loss"], rel=1e-4)
