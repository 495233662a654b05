"""Mask R-CNN's heads against torchvision's own: the same draws, losses, gradients, detections."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import roi_heads as torchvisions
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from attnorm.config import DetectorConfig
from attnorm.detection.batch import Detections
from attnorm.detection.losses import box_loss
from attnorm.detection.regions import RegionSampler, box_coder
from attnorm.detection.roi_heads import RoIHeads
from tests.detection.networks import detector
from tests.detection.regions import CLASSES, near, pool, pyramid, scene

PADDED = (128, 160)
SIZES = [(128, 150), (110, 160)]
CHANNELS = 16
SCENES: list[tuple[list[tuple[float, float, float, float]], list[int]]] = [
    ([(10, 20, 60, 70), (50, 30, 149, 120), (5, 80, 25, 127)], [1, 4, 2]),
    ([(100, 10, 130, 60)], [3]),
]


class Case:
    """Features, proposals and targets of two images, ours and torchvision's."""

    def __init__(self, scenes: Sequence = SCENES, proposals: int = 60) -> None:  # type: ignore[type-arg]
        generator = torch.Generator().manual_seed(2)
        pairs = [scene(size, *s) for size, s in zip(SIZES, scenes, strict=True)]
        self.targets = [ours for ours, _ in pairs]
        self.theirs = [theirs for _, theirs in pairs]
        self.features = pyramid(PADDED, 2, CHANNELS, generator)
        self.proposals = [
            near(target, size, proposals, generator)
            for target, size in zip(self.targets, SIZES, strict=True)
        ]


def parts() -> dict[str, nn.Module]:
    return {
        "box_head": TwoMLPHead(CHANNELS * 49, 32),
        "box_predictor": FastRCNNPredictor(32, CLASSES),
        "mask_head": MaskRCNNHeads(CHANNELS, (CHANNELS, CHANNELS), 1),
        "mask_predictor": MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES),
    }


def heads(**options: object) -> tuple[RoIHeads, torchvisions.RoIHeads]:
    """Ours and torchvision's, with the same weights; weights large enough to be sure of things."""
    torch.manual_seed(0)
    config: DetectorConfig = detector(**{"box_loss_beta": 1 / 9, "box_samples": 32, **options})
    ours = RoIHeads(box_pool=pool(7), mask_pool=pool(14), **parts(), config=config)
    theirs = torchvisions.RoIHeads(
        box_roi_pool=pool(7),
        mask_roi_pool=pool(14),
        **parts(),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=32,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=config.score_threshold,
        nms_thresh=config.nms,
        detections_per_img=config.detections_per_image,
    )
    with torch.no_grad():
        ours.get_parameter("box_predictor.cls_score.weight").mul_(20)
        ours.get_parameter("mask_predictor.mask_fcn_logits.weight").mul_(5)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def train(model: nn.Module, case: Case, targets: Sequence[object]) -> tuple[dict[str, Tensor], ...]:
    """Losses, and gradients of weights and of features."""
    features = {k: v.clone().requires_grad_() for k, v in case.features.items()}
    torch.manual_seed(7)
    _, losses = model.train()(features, list(case.proposals), SIZES, targets)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    gradients |= {f"level {k}": v.grad for k, v in features.items() if v.grad is not None}
    return losses, gradients


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_losses_and_gradients_are_torchvisions() -> None:
    case = Case()
    ours, theirs = heads()
    losses, gradients = train(ours, case, case.targets)
    their_losses, their_gradients = train(theirs, case, case.theirs)
    assert_same(losses, their_losses)
    assert_same(gradients, their_gradients)
    assert min(loss.item() for loss in losses.values()) > 0.1
    assert len(gradients) == len(list(ours.parameters())) + 4


def test_detections_are_torchvisions() -> None:
    case = Case()
    ours, theirs = heads(score_threshold=0.05, nms=0.5, detections_per_image=40)
    with torch.inference_mode():
        found, losses = ours.eval()(case.features, case.proposals, SIZES)
        expected, _ = theirs.eval()(case.features, case.proposals, SIZES)
    assert losses == {}
    for mine, other in zip(found, expected, strict=True):
        assert len(mine) == len(other["boxes"]) > 10
        assert torch.equal(mine.boxes, other["boxes"])
        assert torch.equal(mine.scores, other["scores"])
        assert torch.equal(mine.labels, other["labels"])
        torch.testing.assert_close(mine.masks, other["masks"][:, 0])
    assert {len(mine) for mine in found} == {40}


def test_many_candidates_are_suppressed_as_torchvision_does() -> None:
    """From 1,000 boxes on torchvision goes another way, class by class."""
    case = Case(proposals=400)
    ours, theirs = heads(score_threshold=0.0)
    with torch.inference_mode():
        found, _ = ours.eval()(case.features, case.proposals, SIZES)
        expected, _ = theirs.eval()(case.features, case.proposals, SIZES)
    assert min(len(proposals) for proposals in case.proposals) * (CLASSES - 1) > 1000
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine.boxes, other["boxes"])
        assert torch.equal(mine.labels, other["labels"])


def test_equal_scores_keep_the_order_of_regions() -> None:
    ours, _ = heads(score_threshold=0.0, detections_per_image=7)
    for parameter in ours.box_predictor.parameters():
        nn.init.zeros_(parameter)
    boxes = torch.tensor([[20.0 * i, 10, 20.0 * i + 15, 60] for i in range(5)])
    features = pyramid(PADDED, 1, CHANNELS, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (found,), _ = ours.eval()(features, [boxes], [PADDED])
    assert found.labels.tolist() == [1, 2, 3, 4, 1, 2, 3]
    assert torch.equal(found.boxes, boxes[torch.tensor([0, 0, 0, 0, 1, 1, 1])])


def test_smooth_l1_bends_where_the_config_says() -> None:
    """Equation by equation: x²/2β below β, |x| - β/2 above, over all regions that were drawn."""
    case = Case()
    torch.manual_seed(1)
    regions = RegionSampler(0.5, detector())(case.proposals, case.targets)
    count = sum(len(labels) for labels in regions.labels)
    offsets = torch.randn(count, 4 * CLASSES)
    for beta in (1.0, 1 / 9):
        total, row = 0.0, 0
        for boxes, labels, matched, target in zip(
            regions.boxes, regions.labels, regions.matched, case.targets, strict=True
        ):
            for (x0, y0, x1, y1), label, index in zip(
                boxes.tolist(), labels.tolist(), matched.tolist(), strict=True
            ):
                if label:
                    X0, Y0, X1, Y1 = target.boxes[index].tolist()
                    w, h, W, H = x1 - x0, y1 - y0, X1 - X0, Y1 - Y0
                    wanted = [
                        10 * ((X0 + X1) / 2 - (x0 + x1) / 2) / w,
                        10 * ((Y0 + Y1) / 2 - (y0 + y1) / 2) / h,
                        5 * float(torch.tensor(W / w).double().log()),
                        5 * float(torch.tensor(H / h).double().log()),
                    ]
                    given = offsets[row, 4 * label : 4 * label + 4].tolist()
                    for a, b in zip(given, wanted, strict=True):
                        d = abs(a - b)
                        total += d * d / (2 * beta) if d < beta else d - beta / 2
                row += 1
        found = box_loss(offsets, regions, case.targets, box_coder(), beta)
        assert float(found) == pytest.approx(total / count, rel=1e-4)


def test_the_heads_see_what_they_must_and_no_more() -> None:
    """In training the mask head sees objects alone, in evaluation final detections alone."""
    case = Case()
    ours, _ = heads(detections_per_image=5)
    seen: list[int] = []
    ours.mask_head.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    torch.manual_seed(7)
    regions = RegionSampler(0.5, detector(box_samples=32))(case.proposals, case.targets)
    train(ours, case, case.targets)
    positive = sum(int((labels > 0).sum()) for labels in regions.labels)
    assert seen.pop() == positive <= 16
    with torch.inference_mode():
        found, _ = ours.eval()(case.features, case.proposals, SIZES)
    assert seen == [sum(map(len, found))] == [10]


@pytest.mark.parametrize("which", ["one image", "all images"])
def test_images_without_objects(which: str) -> None:
    case = Case([SCENES[0], ([], [])] if which == "one image" else [([], []), ([], [])])
    ours, theirs = heads()
    losses, gradients = train(ours, case, case.targets)
    their_losses, their_gradients = train(theirs, case, case.theirs)
    assert_same(losses, their_losses)
    assert_same(gradients, their_gradients)
    assert all(p.grad is not None for p in ours.parameters())


def test_nothing_at_all_costs_nothing_and_reaches_every_parameter() -> None:
    case = Case([([], []), ([], [])])
    case.proposals = [torch.zeros(0, 4)] * 2
    ours, _ = heads()
    losses, _ = train(ours, case, case.targets)
    assert {name: loss.item() for name, loss in losses.items()} == dict.fromkeys(losses, 0.0)
    assert all(p.grad is not None and not p.grad.any() for p in ours.parameters())
    with torch.inference_mode():
        found, _ = ours.eval()(case.features, case.proposals, SIZES)
    for each in found:
        assert isinstance(each, Detections)
        assert each.masks is not None
        assert [t.shape for t in (each.boxes, each.masks)] == [(0, 4), (0, 28, 28)]


def test_objects_without_proposals_train_on_their_own_boxes() -> None:
    case = Case()
    case.proposals = [torch.zeros(0, 4)] * 2
    sampler = RegionSampler(0.5, detector())
    regions = sampler(case.proposals, case.targets)
    assert all(bool(own.all()) for own in regions.from_targets)
    for boxes, labels, target in zip(regions.boxes, regions.labels, case.targets, strict=True):
        assert torch.equal(boxes, target.boxes)
        assert torch.equal(labels, target.labels)


def test_bfloat16_gives_losses_and_detections_in_float32() -> None:
    case = Case()
    ours, _ = heads()
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = train(ours, case, case.targets)
        with torch.inference_mode():
            found, _ = ours.eval()(case.features, case.proposals, SIZES)
    exact, _ = train(ours, case, case.targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(float(exact[name]), rel=0.05), name
    for each in found:
        assert isinstance(each.masks, Tensor)
        assert {each.boxes.dtype, each.scores.dtype, each.masks.dtype} == {torch.float32}
