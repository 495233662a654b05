"""Hybrid Task Cascade against its paper's equations, written in loops (``equations``)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import RoIAlign

from attnorm.config import HTCConfig
from attnorm.detection.htc import HTCRoIHeads
from attnorm.detection.semantic import SemanticBranch
from tests.detection import equations as eq
from tests.detection.cascades import (
    CHANNELS,
    PROPOSALS,
    SIZES,
    STAGES,
    STDS,
    Case,
    assert_agree,
    box_heads,
    config,
    modules,
)
from tests.detection.regions import CLASSES

STUFF = 5


def build(**options: Any) -> HTCRoIHeads:
    made = config(HTCConfig, **options)
    assert isinstance(made, HTCConfig)
    parts = modules()
    if made.semantic_branch:
        levels = ["0", "1", "2", "3", "pool"]
        parts["semantic_branch"] = SemanticBranch(CHANNELS, levels, 1, STUFF)
        parts["semantic_pool"] = RoIAlign(14, 1 / 8, 2)
    model = HTCRoIHeads(**parts, config=made)
    for conv in model.mask_flow:
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        nn.init.normal_(conv.bias)
    return model


def stuff_map() -> Tensor:
    labels = torch.randint(0, STUFF, (2, 12, 16), generator=torch.Generator().manual_seed(4))
    labels[1, 5:, 9:] = 255
    return labels


class Exact:
    """The heads in float64, for one region at a time; S(x) of each image."""

    def __init__(self, model: HTCRoIHeads, case: Case) -> None:
        self.model, self.boxes = deepcopy(model).double(), box_heads(model)
        self.flow = bool(model.mask_flow)
        self.logits: list[Tensor] = []
        self.embeddings: list[Tensor | None] = [None] * len(case.images)
        if self.model.semantic_branch is not None:
            self.model.semantic_branch.train()
            logits, embedding = self.model.semantic_branch(case.exact)
            self.logits, self.embeddings = list(logits), list(embedding)

    def pooled(self, image: eq.Image, n: int, box: eq.Box, cells: int) -> Tensor:
        """P(x, r) + P(S(x), r), the latter on a grid of 14 and averaged where the former's is 7."""
        x = eq.pyramid_roi_align(image.maps, box, cells)
        embedding = self.embeddings[n]
        if embedding is None:
            return x
        semantic = eq.roi_align(embedding, box, 8, 14, 2)
        if cells == 7:
            halves = [semantic[:, i::2, j::2] for i in range(2) for j in range(2)]
            semantic = torch.stack(halves).mean(0)
        return x + semantic

    def masks(self, stage: int, x: Tensor) -> list[Tensor]:
        """Logits of M_0(x), M_1(F(x, m_0)), … up to ``stage``, with F(x, m) = x + relu(G m)."""
        logits: list[Tensor] = []
        before: Tensor | None = None
        for each in range(stage + 1):
            given = x
            if before is not None and self.flow:
                conv: Any = self.model.mask_flow[each - 1]
                flowed = torch.einsum("oi,ihw->ohw", conv.weight[:, :, 0, 0], before)
                given = x + (flowed + conv.bias[:, None, None]).clamp(min=0)
            before = self.model.mask_heads[each](given[None])[0]
            logits.append(self.model.mask_predictors[each](before[None])[0])
        return logits


def htc_losses(model: HTCRoIHeads, case: Case, semantic: Tensor | None) -> dict[str, Tensor]:
    """Chen et al. (2019): boxes of a stage, then masks on the boxes that it has moved."""
    exact = Exact(model, case)
    proposals = [list(boxes) for boxes in PROPOSALS]
    losses = {}
    for stage, (threshold, weight) in enumerate(zip((0.5, 0.6, 0.7), (1, 0.5, 0.25), strict=True)):
        classes, offsets_lost, masks = [], [], []
        for n, image in enumerate(case.images):
            moved = []
            regions = [(box, False) for box in proposals[n]] + [(box, True) for box in image.boxes]
            for region, is_object in regions:
                label, index = image.assign(region, threshold)
                logits, offsets = exact.boxes[stage](exact.pooled(image, n, region, 7))
                classes.append(eq.cross_entropy(logits, label))
                if label:
                    wanted = eq.encode(region, image.boxes[index], STDS[stage])
                    offsets_lost.append(eq.smooth_l1(offsets, wanted, 1.0))
                if not is_object:
                    box = eq.decode(region, offsets.tolist(), STDS[stage])
                    moved.append(eq.clip(box, image.size))
            proposals[n] = moved
            for region in [*moved, *image.boxes]:
                label, index = image.assign(region, threshold)
                if label:
                    logits = exact.masks(stage, exact.pooled(image, n, region, 14))[stage]
                    wanted_mask = image.mask(index, region, 28)
                    masks.append(eq.binary_cross_entropy(logits[label], wanted_mask))
        losses[f"loss_classifier_{stage}"] = weight * eq.total(classes) / len(classes)
        losses[f"loss_box_reg_{stage}"] = weight * eq.total(offsets_lost) / len(classes)
        losses[f"loss_mask_{stage}"] = weight * eq.total(masks) / len(masks)
    if semantic is not None:
        pixels = [
            eq.cross_entropy(logits[:, row, column], int(labels[row, column]))
            for logits, labels in zip(exact.logits, semantic, strict=True)
            for row in range(labels.shape[0])
            for column in range(labels.shape[1])
            if int(labels[row, column]) != 255
        ]
        losses["loss_semantic"] = 0.2 * eq.total(pixels) / len(pixels)
    return losses


@pytest.mark.parametrize(
    ("flow", "branch"),
    [(True, True), (True, False), (False, False)],
    ids=["all", "flow", "neither"],
)
def test_losses_and_gradients_follow_the_equations(flow: bool, branch: bool) -> None:
    case = Case()
    model = build(mask_information_flow=flow, semantic_branch=branch).train()
    semantic = stuff_map() if branch else None
    _, losses = model(case.features, case.proposals, SIZES, case.targets, semantic)
    assert len(losses) == 9 + branch
    assert_agree(model, case, losses, htc_losses(model, case, semantic))


def test_detections_follow_the_equations() -> None:
    case = Case()
    model = build(score_threshold=0.2, detections_per_image=4, nms=0.3).eval()
    with torch.inference_mode():
        found, losses = model(case.features, case.proposals, SIZES)
    assert losses == {}
    exact = Exact(model, case)
    for n, (image, proposals, each) in enumerate(zip(case.images, PROPOSALS, found, strict=True)):
        candidates = []
        for proposal in proposals:
            region, all_logits = proposal, []
            for stage in range(STAGES):
                logits, offsets = exact.boxes[stage](exact.pooled(image, n, region, 7))
                all_logits.append(logits)
                region = eq.clip(eq.decode(region, offsets.tolist(), STDS[stage]), image.size)
            mean = torch.stack(all_logits).mean(0)
            probabilities = mean.exp() / mean.exp().sum()
            candidates += [
                (float(probabilities[label]), label, region)
                for label in range(1, CLASSES)
                if float(probabilities[label]) > 0.2
            ]
        kept = eq.suppressed(candidates, 0.3, 4)
        assert len(kept) > 1
        assert each.labels.tolist() == [label for _, label, _ in kept]
        assert each.scores.tolist() == pytest.approx([score for score, _, _ in kept], rel=1e-4)
        assert each.masks is not None
        for mask, (_, label, region) in zip(each.masks, kept, strict=True):
            by_stage = exact.masks(STAGES - 1, exact.pooled(image, n, region, 14))
            mean_mask = sum(1 / (1 + (-logits[label]).exp()) for logits in by_stage) / STAGES
            torch.testing.assert_close(mask.double(), mean_mask, rtol=0, atol=1e-3)


def test_the_flow_has_a_convolution_for_each_stage_but_the_first() -> None:
    """65,792 parameters each at 256 channels, and none that no loss reaches."""
    assert len(build(semantic_branch=False).mask_flow) == STAGES - 1
    assert len(build(semantic_branch=False, mask_information_flow=False).mask_flow) == 0
    with torch.device("meta"):
        flow = HTCRoIHeads(**modules(), config=config(HTCConfig, channels=256)).mask_flow  # type: ignore[arg-type]
    assert sum(p.numel() for p in flow.parameters()) == 2 * 65_792


def test_every_loss_of_the_last_mask_reaches_the_first_mask_head() -> None:
    """Information flows through features, with their gradients."""
    case = Case()
    model = build(semantic_branch=False).train()
    _, losses = model(case.features, case.proposals, SIZES, case.targets)
    losses["loss_mask_2"].backward()
    reached = [
        any(p.grad is not None and bool(p.grad.any()) for p in head.parameters())
        for head in model.mask_heads
    ]
    assert reached == [True] * STAGES


def test_a_branch_without_maps_to_train_on_is_refused() -> None:
    case = Case()
    with pytest.raises(ValueError, match="trains on semantic maps, and there are none"):
        build().train()(case.features, case.proposals, SIZES, case.targets)


def test_a_branch_and_its_pool_come_together() -> None:
    with pytest.raises(ValueError, match="needs a pool"):
        HTCRoIHeads(**modules(), config=config(HTCConfig), semantic_pool=RoIAlign(14, 1 / 8, 2))  # type: ignore[arg-type]


def scenes(count: int) -> Sequence[tuple[list[eq.Box], list[int]]]:
    return [([], [])] * count


def test_images_without_objects_and_without_proposals() -> None:
    case = Case(scenes(2))
    model = build().train()
    nothing = [torch.zeros(0, 4)] * 2
    for proposals in (case.proposals, nothing):
        model.zero_grad()
        _, losses = model(case.features, proposals, SIZES, case.targets, stuff_map())
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        assert bool(total.isfinite())
        assert all(p.grad is not None for p in model.parameters())
    with torch.inference_mode():
        found, _ = model.eval()(case.features, nothing, SIZES)
    assert [len(each) for each in found] == [0, 0]


def test_bfloat16_gives_losses_and_detections_in_float32() -> None:
    case = Case()
    model = build(score_threshold=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        _, losses = model.train()(case.features, case.proposals, SIZES, case.targets, stuff_map())
        with torch.inference_mode():
            found, _ = model.eval()(case.features, case.proposals, SIZES)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    for each in found:
        assert each.masks is not None
        assert {each.boxes.dtype, each.scores.dtype, each.masks.dtype} == {torch.float32}


def test_averaging_over_halves_is_pooling_to_half() -> None:
    """What the equations above take for granted of the semantic features of boxes."""
    x = torch.randn(1, 3, 14, 14)
    halves = torch.stack([x[:, :, i::2, j::2] for i in range(2) for j in range(2)]).mean(0)
    torch.testing.assert_close(F.adaptive_avg_pool2d(x, 7), halves)
