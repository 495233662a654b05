"""The detectors as a whole: losses and detections, what learns, and what bfloat16 may not touch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from attnorm.config import CascadeConfig, DetectorConfig, HTCConfig, load_norm
from attnorm.detection.backbone import build_backbone
from attnorm.detection.batch import Detections, InstanceMasks, Targets
from attnorm.detection.heads import BoxPredictor, build_box_head
from attnorm.detection.model import Detector, build_detector, build_pool, build_rpn
from attnorm.errors import UserError
from tests.detection.networks import as_kind, detector, tiny

CLASSES = 3
SIZES = [(90, 120), (96, 64)]
RPN_LOSSES = {"loss_objectness", "loss_rpn_box_reg"}
STAGE_LOSSES = ("loss_classifier", "loss_box_reg", "loss_mask")
KINDS = [DetectorConfig, CascadeConfig, HTCConfig]


def build(
    kind: type[DetectorConfig] = DetectorConfig, norm: str = "an", **options: object
) -> Detector:
    torch.manual_seed(0)
    if kind is HTCConfig:
        options = {"semantic_classes": 5, **options}
    config = as_kind(kind, detector(), **options)
    return build_detector(tiny(), load_norm(norm), config, CLASSES)


def images() -> Tensor:
    """Two images, padded to 96 × 128."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.zeros(2, 3, 96, 128)
    for image, (height, width) in zip(batch, SIZES, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
    return batch


def target(boxes: Sequence[Sequence[int]]) -> Targets:
    """Full rectangles, of classes 1, 2, 3, 1, …"""
    windows = torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)
    bitmaps = [torch.ones(y1 - y0, x1 - x0, dtype=torch.uint8) for x0, y0, x1, y1 in boxes]
    labels = torch.arange(len(boxes)) % CLASSES + 1
    return Targets(windows.float(), labels, InstanceMasks.from_bitmaps(bitmaps, windows))


def targets() -> list[Targets]:
    """Objects in the first image, none in the second."""
    return [target([(10, 10, 50, 60), (60, 20, 110, 80)]), target([])]


def semantic(kind: type[DetectorConfig]) -> Tensor | None:
    if kind is not HTCConfig:
        return None
    labels = torch.randint(0, 5, (2, 12, 16), generator=torch.Generator().manual_seed(1))
    labels[1, :, 8:] = 255
    return labels


def losses(model: Detector, kind: type[DetectorConfig] = DetectorConfig) -> dict[str, Tensor]:
    output = model(images(), SIZES, targets(), semantic(kind))
    assert isinstance(output, dict)
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_training_gives_a_loss_of_every_branch_and_a_gradient_to_all_that_learns(
    kind: type[DetectorConfig],
) -> None:
    model = build(kind)
    found = losses(model.train(), kind)
    expected = set(STAGE_LOSSES)
    if kind is not DetectorConfig:
        expected = {f"{name}_{stage}" for name in STAGE_LOSSES for stage in range(3)}
    expected |= RPN_LOSSES | ({"loss_semantic"} if kind is HTCConfig else set())
    assert set(found) == expected
    assert all(loss.shape == () and bool(loss.isfinite()) for loss in found.values())
    torch.stack(list(found.values())).sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(name.startswith("backbone.body.") for name in frozen)


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_any_object_train_too(kind: type[DetectorConfig]) -> None:
    """Every parameter gets a gradient then too, as processes of a distributed run must agree."""
    model = build(kind).train()
    found = model(images(), SIZES, [target([]), target([])], semantic(kind))
    assert isinstance(found, dict)
    torch.stack(list(found.values())).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_gives_detections_inside_the_images_best_first(
    kind: type[DetectorConfig],
) -> None:
    model = build(kind, score_threshold=0.0, detections_per_image=7).eval()
    with torch.inference_mode():
        output = model(images(), SIZES)
    assert isinstance(output, list)
    assert [len(found) for found in output] == [7, 7]
    for found, (height, width) in zip(output, SIZES, strict=True):
        assert isinstance(found, Detections)
        assert found.boxes.dtype == found.scores.dtype == torch.float32
        limits = torch.tensor([width, height, width, height])
        assert bool((found.boxes >= 0).all() and (found.boxes <= limits).all())
        assert torch.equal(found.scores, found.scores.sort(descending=True).values)
        assert set(found.labels.tolist()) <= set(range(1, CLASSES + 1))
        assert found.masks is not None
        assert found.masks.shape == (7, 28, 28)
        assert bool((found.masks >= 0).all() and (found.masks <= 1).all())


def test_a_step_learns() -> None:
    model = build(norm="bn", freeze="none").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    totals = []
    for _ in range(4):
        torch.manual_seed(5)
        total = torch.stack(list(losses(model).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]


def test_targets_are_for_training_alone() -> None:
    model = build()
    with pytest.raises(ValueError, match="in training mode got targets=False"):
        model.train()(images(), SIZES)
    with pytest.raises(ValueError, match="in evaluation mode got targets=True"):
        model.eval()(images(), SIZES, targets())


def test_proposals_are_torchvisions() -> None:
    torch.manual_seed(0)
    config = detector()
    rpn = build_rpn(config)
    sizes = tuple((side,) for side in config.anchor_sizes)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    theirs = RegionProposalNetwork(
        anchors,
        RPNHead(32, 3),
        0.7,
        0.3,
        config.rpn_samples,
        0.5,
        {"training": 50, "testing": 50},
        {"training": 50, "testing": 20},
        0.7,
    )
    theirs.load_state_dict(rpn.state_dict())
    features = build_backbone(tiny(), load_norm("bn"), config)(images())
    batch = ImageList(images(), SIZES)
    boxes = [{"boxes": entry.boxes} for entry in targets()]
    outputs = []
    for network in (rpn, theirs):
        torch.manual_seed(3)
        outputs.append(network.train()(batch, features, boxes))
    (mine, my_losses), (other, their_losses) = outputs
    assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    assert {k: v.item() for k, v in my_losses.items()} == {
        k: v.item() for k, v in their_losses.items()
    }
    mine, other = (network.eval()(batch, features)[0] for network in (rpn, theirs))
    assert [len(boxes) for boxes in mine] == [20, 20]
    assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def test_bfloat16_leaves_anchors_and_proposals_in_float32() -> None:
    """At 1333 pixels bfloat16 has steps of 8."""
    torch.manual_seed(0)
    rpn = build_rpn(detector()).eval()
    maps = {str(level): torch.randn(1, 32, 1, 320 >> level) for level in range(5)}
    batch = ImageList(torch.zeros(1, 3, 4, 1280), [(4, 1280)])
    anchors = rpn.anchor_generator(batch, [x.bfloat16() for x in maps.values()])
    assert torch.equal(anchors[0], rpn.anchor_generator(batch, list(maps.values()))[0])
    assert not torch.equal(anchors[0], anchors[0].bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        logits, offsets = rpn.head([x.bfloat16() for x in maps.values()])
        proposals, _ = rpn(batch, {k: x.bfloat16() for k, x in maps.items()})
    assert {x.dtype for x in [*logits, *offsets, *proposals]} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_trains_and_detects(kind: type[DetectorConfig]) -> None:
    model = build(kind, score_threshold=0.0, detections_per_image=5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        found = losses(model.train(), kind)
    torch.manual_seed(1)
    with torch.no_grad():
        exact = losses(model, kind)
    for name, loss in found.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.1, abs=0.02), name
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        output = model.eval()(images()[1:, :, :, :64], SIZES[1:])
    assert isinstance(output, list)
    assert output[0].boxes.dtype == output[0].scores.dtype == torch.float32


def test_regions_are_sampled_at_the_strides_of_the_body_whatever_image_comes_first() -> None:
    config = detector()
    backbone = build_backbone(tiny(), load_norm("bn"), config).eval()
    pool = build_pool(backbone, 7)
    left_alone = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    with torch.no_grad():
        large, small = (backbone(torch.randn(1, 3, side, side)) for side in (256, 64))
    regions = [torch.tensor([[3.0, 5.0, 200.0, 250.0], [10.0, 20.0, 40.0, 60.0]])]
    expected = left_alone(large, regions, [(256, 256)])  # from whole images it infers them well
    pool(small, [torch.tensor([[1.0, 1.0, 30.0, 30.0]])], [(33, 33)])
    assert torch.equal(pool(large, regions, [(256, 256)]), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_detector_has_heads_of_its_own_for_each_stage(kind: type[DetectorConfig]) -> None:
    options = {"box_head": "4conv1fc", "box_head_norm": "an", "mask_head_norm": "gn"}
    model = build(kind, **options)
    stages = 1 if kind is DetectorConfig else 3
    head_class = type(build_box_head(detector()))
    heads = [module for module in model.modules() if isinstance(module, head_class)]
    assert len({id(head) for head in heads}) == stages
    predictors = [module for module in model.modules() if isinstance(module, BoxPredictor)]
    outputs = 4 * (CLASSES + 1) if stages == 1 else 4
    assert [p.bbox_pred.out_features for p in predictors] == [outputs] * stages


def test_a_semantic_branch_needs_a_map_of_stride_8() -> None:
    with pytest.raises(
        UserError, match=r"detector.semantic_branch=true needs maps of strides 4, 8"
    ):
        build(HTCConfig, out_indices=[0, 1, 2, 3])
    build(HTCConfig, out_indices=[0, 1, 2, 3], semantic_branch=False)
