"""Cascade Mask R-CNN against its papers' equations, written in loops (``equations``)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from attnorm.detection.cascade import CascadeRoIHeads
from tests.detection import equations as eq
from tests.detection.cascades import (
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


def mask_heads(model: CascadeRoIHeads) -> list[eq.Head]:
    """The stages' mask heads, one region at a time, in float64."""
    exact = deepcopy(model).double()

    def make(stage: int) -> eq.Head:
        return lambda pooled: exact.mask_predictors[stage](exact.mask_heads[stage](pooled[None]))[0]

    return [make(stage) for stage in range(STAGES)]


def cascade_losses(
    model: CascadeRoIHeads, case: Case, weights: Sequence[float]
) -> dict[str, Tensor]:
    """Cai and Vasconcelos (2018), equation 8 for each stage, and a mask head at each."""
    boxes_of, masks_of = box_heads(model), mask_heads(model)
    proposals = [list(boxes) for boxes in PROPOSALS]
    losses = {}
    for stage, threshold in enumerate((0.5, 0.6, 0.7)):
        classes, offsets_lost, masks = [], [], []
        for n, image in enumerate(case.images):
            moved = []
            regions = [(box, False) for box in proposals[n]] + [(box, True) for box in image.boxes]
            for region, is_object in regions:
                label, index = image.assign(region, threshold)
                logits, offsets = boxes_of[stage](eq.pyramid_roi_align(image.maps, region, 7))
                classes.append(eq.cross_entropy(logits, label))
                if label:
                    wanted = eq.encode(region, image.boxes[index], STDS[stage])
                    offsets_lost.append(eq.smooth_l1(offsets, wanted, 1.0))
                    mask = masks_of[stage](eq.pyramid_roi_align(image.maps, region, 14))[label]
                    masks.append(eq.binary_cross_entropy(mask, image.mask(index, region, 28)))
                if not is_object:
                    box = eq.decode(region, offsets.tolist(), STDS[stage])
                    moved.append(eq.clip(box, image.size))
            proposals[n] = moved
        weight = weights[stage]
        losses[f"loss_classifier_{stage}"] = weight * eq.total(classes) / len(classes)
        losses[f"loss_box_reg_{stage}"] = weight * eq.total(offsets_lost) / len(classes)
        losses[f"loss_mask_{stage}"] = weight * eq.total(masks) / len(masks)
    return losses


def test_losses_and_gradients_follow_the_equations() -> None:
    case = Case()
    model = CascadeRoIHeads(**modules(), config=config()).train()
    detections, losses = model(case.features, case.proposals, SIZES, case.targets)
    assert detections == []
    expected = cascade_losses(model, case, (1.0, 0.5, 0.25))
    assert len(expected) == 9
    assert_agree(model, case, losses, expected)


def test_weights_of_the_stages_are_those_of_the_config() -> None:
    case = Case()
    model = CascadeRoIHeads(**modules(), config=config(stage_weights=[1.0, 1.0, 1.0])).train()
    _, equal = model(case.features, case.proposals, SIZES, case.targets)
    model = CascadeRoIHeads(**modules(), config=config()).train()
    _, losses = model(case.features, case.proposals, SIZES, case.targets)
    for name, loss in losses.items():
        weight = (1.0, 0.5, 0.25)[int(name[-1])]
        torch.testing.assert_close(loss, weight * equal[name])


def test_detections_follow_the_equations() -> None:
    """Mean logits, boxes of the last stage, mean probabilities of masks."""
    case = Case()
    made = config(score_threshold=0.2, detections_per_image=4, nms=0.3)
    model = CascadeRoIHeads(**modules(), config=made).eval()
    with torch.inference_mode():
        found, losses = model(case.features, case.proposals, SIZES)
    assert losses == {}
    boxes_of, masks_of = box_heads(model), mask_heads(model)
    for image, proposals, each in zip(case.images, PROPOSALS, found, strict=True):
        candidates = []
        for region in proposals:
            all_logits = []
            for stage in range(STAGES):
                logits, offsets = boxes_of[stage](eq.pyramid_roi_align(image.maps, region, 7))
                all_logits.append(logits)
                box = eq.decode(region, offsets.tolist(), STDS[stage])
                region = eq.clip(box, image.size)
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
        for box, mask, (_, label, exact) in zip(each.boxes, each.masks, kept, strict=True):
            assert box.tolist() == pytest.approx(exact, abs=1e-2)
            pooled = eq.pyramid_roi_align(image.maps, exact, 14)
            masks = [1 / (1 + (-masks_of[s](pooled)[label]).exp()) for s in range(STAGES)]
            torch.testing.assert_close(mask.double(), sum(masks) / STAGES, rtol=0, atol=1e-3)


def test_images_without_objects_and_without_proposals() -> None:
    case = Case([([], []), ([], [])])
    model = CascadeRoIHeads(**modules(), config=config()).train()
    nothing = [torch.zeros(0, 4)] * 2
    for proposals in (case.proposals, [case.proposals[0], nothing[0]], nothing):
        model.zero_grad()
        _, losses = model(case.features, proposals, SIZES, case.targets)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        assert bool(total.isfinite())
        assert all(float(losses[f"loss_mask_{stage}"]) == 0 for stage in range(STAGES))
        assert all(p.grad is not None for p in model.parameters())
    with torch.inference_mode():
        found, _ = model.eval()(case.features, nothing, SIZES)
    for each in found:
        assert each.masks is not None
        assert each.masks.shape == (0, 28, 28)


def test_objects_without_proposals_train_every_stage_on_their_own_boxes() -> None:
    """Stages after the first have no proposals either then, and still objects' own boxes."""
    case = Case()
    model = CascadeRoIHeads(**modules(), config=config()).train()
    _, losses = model(case.features, [torch.zeros(0, 4)] * 2, SIZES, case.targets)
    assert min(float(loss) for name, loss in losses.items() if "mask" in name) > 0


def test_boxes_that_are_no_numbers_give_losses_that_are_none() -> None:
    """Rather than an address out of range; the training answers such losses."""
    case = Case()
    model = CascadeRoIHeads(**modules(), config=config()).train()
    with torch.no_grad():
        for parameter in model.box_predictors[0].parameters():
            parameter.fill_(float("nan"))
    _, losses = model(case.features, case.proposals, SIZES, case.targets)
    assert not torch.stack(list(losses.values())).sum().isfinite()


def test_bfloat16_gives_losses_and_detections_in_float32() -> None:
    case = Case()
    model = CascadeRoIHeads(**modules(), config=config(score_threshold=0.0))
    with torch.autocast("cpu", torch.bfloat16):
        _, losses = model.train()(case.features, case.proposals, SIZES, case.targets)
        with torch.inference_mode():
            found, _ = model.eval()(case.features, case.proposals, SIZES)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    for each in found:
        assert each.masks is not None
        assert {each.boxes.dtype, each.scores.dtype, each.masks.dtype} == {torch.float32}
