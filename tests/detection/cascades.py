"""Cascades small enough for the equations, and what both are given."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from attnorm.config import CascadeConfig
from attnorm.detection.cascade import CascadeRoIHeads
from tests.detection import equations as eq
from tests.detection.networks import as_kind, detector
from tests.detection.regions import CLASSES, pool, pyramid, scene

CHANNELS, STAGES = 4, 3
PADDED = (96, 128)
SIZES = [(96, 120), (88, 128)]
SCENES: list[tuple[list[eq.Box], list[int]]] = [
    ([(8.0, 10.0, 60.0, 50.0), (50.0, 30.0, 118.0, 92.0)], [1, 3]),
    ([(70.0, 12.0, 110.0, 71.0)], [2]),
]
PROPOSALS: list[list[eq.Box]] = [
    [
        (10.0, 14.0, 58.0, 53.0),  # overlaps of .78, .61, .55, .83, …: some stages' alone
        (4.0, 3.0, 63.0, 49.0),
        (20.0, 10.0, 64.0, 56.0),
        (54.0, 28.0, 120.0, 90.0),
        (40.0, 40.0, 110.0, 96.0),
        (90.0, 2.0, 118.0, 20.0),
        (0.0, 60.0, 30.0, 96.0),
    ],
    [
        (72.0, 15.0, 112.0, 70.0),
        (60.0, 10.0, 104.0, 80.0),
        (75.0, 22.0, 122.0, 66.0),
        (5.0, 5.0, 50.0, 60.0),
    ],
]
STDS = [(0.1, 0.2), (0.05, 0.1), (0.033, 0.067)]


class Predictor(nn.Module):
    """Class logits and offsets that all classes share, large enough to matter."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.offsets = nn.Linear(12, CLASSES), nn.Linear(12, 4)
        nn.init.normal_(self.classes.weight)
        nn.init.normal_(self.offsets.weight, std=0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.classes(x), self.offsets(x)


def config(kind: type[CascadeConfig] = CascadeConfig, **options: Any) -> CascadeConfig:
    """Every region is drawn: of 64, half may hold objects."""
    values = {"box_samples": 64, "box_positive": 0.5, "channels": CHANNELS, **options}
    made = as_kind(kind, detector(), **values)
    assert isinstance(made, CascadeConfig)
    return made


def modules() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "box_pool": pool(7),
        "mask_pool": pool(14),
        "box_heads": [TwoMLPHead(CHANNELS * 49, 12) for _ in range(STAGES)],
        "box_predictors": [Predictor() for _ in range(STAGES)],
        "mask_heads": [MaskRCNNHeads(CHANNELS, (CHANNELS, CHANNELS), 1) for _ in range(STAGES)],
        "mask_predictors": [MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES) for _ in range(STAGES)],
    }


class Case:
    """Two images for ours, and the same for the equations."""

    def __init__(self, scenes: Sequence[tuple[list[eq.Box], list[int]]] = SCENES) -> None:
        self.features = pyramid(PADDED, 2, CHANNELS, torch.Generator().manual_seed(3))
        for value in self.features.values():
            value.requires_grad_()
        pairs = [scene(size, *s) for size, s in zip(SIZES, scenes, strict=True)]
        self.targets = [ours for ours, _ in pairs]
        self.proposals = [torch.tensor(boxes) for boxes in PROPOSALS]
        self.exact = {
            name: value.detach().double().requires_grad_() for name, value in self.features.items()
        }
        self.images = [
            eq.Image([self.exact[str(level)][n] for level in range(4)], size, *s, theirs["masks"])
            for n, (size, s, (_, theirs)) in enumerate(zip(SIZES, scenes, pairs, strict=True))
        ]


def box_heads(model: CascadeRoIHeads) -> list[eq.BoxHead]:
    """The stages' box heads, one region at a time, in float64."""
    exact = deepcopy(model).double()

    def make(stage: int) -> eq.BoxHead:
        def head(pooled: Tensor) -> tuple[Tensor, Tensor]:
            logits, offsets = exact.box_predictors[stage](exact.box_heads[stage](pooled[None]))
            return logits[0], offsets[0]

        return head

    return [make(stage) for stage in range(STAGES)]


def assert_agree(
    model: CascadeRoIHeads, case: Case, losses: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    """Losses, and gradients of the maps."""
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(float(value), rel=2e-4), name
    torch.stack(list(losses.values())).sum().backward()
    torch.stack(list(expected.values())).sum().backward()
    for name, value in case.features.items():
        exact = case.exact[name].grad
        if exact is not None:
            assert value.grad is not None
            torch.testing.assert_close(value.grad.double(), exact, rtol=2e-3, atol=2e-5)
    assert all(p.grad is not None for p in model.parameters())
