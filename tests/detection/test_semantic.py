"""The branch that segments the whole image, against loops in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from attnorm.detection.semantic import SemanticBranch, semantic_loss
from tests.detection.regions import pyramid

CHANNELS, NUM_CLASSES = 3, 4
LEVELS = ["0", "1", "2", "3", "pool"]


def branch() -> SemanticBranch:
    torch.manual_seed(0)
    model = SemanticBranch(CHANNELS, LEVELS, fused_level=1, num_classes=NUM_CLASSES)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model


def convolution(x: Tensor, conv: nn.Module, relu: bool = True) -> Tensor:
    """Zeros outside of the map, then a ReLU: one output pixel after another."""
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    weight, bias = conv.weight.detach().double(), conv.bias.detach().double()
    _, height, width = x.shape
    reach = weight.shape[2] // 2
    out = torch.zeros(len(weight), height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            total = bias.clone()
            for i in range(-reach, reach + 1):
                for j in range(-reach, reach + 1):
                    r, c = row + i, column + j
                    if 0 <= r < height and 0 <= c < width:
                        total += weight[:, :, reach + i, reach + j] @ x[:, r, c]
            out[:, row, column] = total
    return out.clamp(min=0) if relu else out


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, the corner pixels of both maps at the same places."""
    out = torch.zeros(len(x), height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            y = row * (x.shape[1] - 1) / max(height - 1, 1)
            at = column * (x.shape[2] - 1) / max(width - 1, 1)
            top, left = math.floor(y), math.floor(at)
            for r, weight_r in ((top, top + 1 - y), (min(top + 1, x.shape[1] - 1), y - top)):
                for c, weight_c in (
                    (left, left + 1 - at),
                    (min(left + 1, x.shape[2] - 1), at - left),
                ):
                    out[:, row, column] += weight_r * weight_c * x[:, r, c]
    return out


def expected(model: SemanticBranch, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    height, width = maps[1].shape[1:]
    total = torch.zeros(CHANNELS, height, width, dtype=torch.float64)
    for lateral, x in zip(model.lateral_convs, maps, strict=True):
        total += resize(convolution(x.double(), lateral[0]), height, width)  # type: ignore[index]
    for block in model.convs:
        total = convolution(total, block[0])  # type: ignore[index]
    logits = convolution(total, model.conv_logits, relu=False)
    return logits, convolution(total, model.conv_embedding[0])


def test_fuses_all_levels_at_stride_8() -> None:
    model = branch().train()
    maps = pyramid((64, 96), 2, CHANNELS, torch.Generator().manual_seed(1))
    logits, embedding = model(maps)
    assert logits.shape == (2, NUM_CLASSES, 8, 12)
    assert embedding.shape == (2, CHANNELS, 8, 12)
    for n in range(2):
        exact_logits, exact_embedding = expected(model, [x[n] for x in maps.values()])
        torch.testing.assert_close(logits[n].double(), exact_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(embedding[n].double(), exact_embedding, rtol=1e-4, atol=1e-4)
    assert float(exact_embedding.max()) > 0


def test_evaluation_needs_the_features_alone() -> None:
    maps = pyramid((64, 96), 1, CHANNELS, torch.Generator().manual_seed(1))
    model = branch()
    _, trained = model.train()(maps)
    logits, embedding = model.eval()(maps)
    assert logits is None
    assert torch.equal(embedding, trained)


def test_has_the_parameters_of_the_paper_s_branch() -> None:
    """2,802,103 with 256 channels and 183 classes: things, stuff and the rest."""
    with torch.device("meta"):
        model = SemanticBranch(256, LEVELS, fused_level=1, num_classes=183)
    assert sum(p.numel() for p in model.parameters()) == 2_802_103


def test_the_loss_is_the_mean_over_labelled_pixels() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, NUM_CLASSES, 3, 5, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (2, 3, 5), generator=generator)
    labels[0, 1] = 255
    labels[1, 2, 2:] = 255
    total, count = 0.0, 0
    for n in range(2):
        for row in range(3):
            for column in range(5):
                label = int(labels[n, row, column])
                if label != 255:
                    scores = [math.exp(float(x)) for x in logits[n, :, row, column]]
                    total -= math.log(scores[label] / sum(scores))
                    count += 1
    assert count == 22
    assert float(semantic_loss(logits, labels)) == pytest.approx(total / count, rel=1e-5)


def test_a_map_without_labels_costs_nothing() -> None:
    logits = torch.randn(1, NUM_CLASSES, 3, 5, requires_grad=True)
    loss = semantic_loss(logits, torch.full((1, 3, 5), 255))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4, 5\) for logits of \(1, 4, 3, 5\)"):
        semantic_loss(torch.zeros(1, NUM_CLASSES, 3, 5), torch.zeros(1, 4, 5, dtype=torch.int64))
