"""The whole Mask R-CNN against torchvision's, with the same weights, on photographs."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image

from attnorm.config import load_norm
from attnorm.detection.batch import Size, Targets
from attnorm.detection.model import Detector, build_detector
from tests.detection.networks import detector, tiny
from tests.detection.regions import scene

CLASSES = 3
SIZES: list[Size] = [(128, 192), (120, 160), (160, 108), (96, 150)]
BOXES: list[tuple[list[tuple[float, float, float, float]], list[int]]] = [
    ([(20, 30, 90, 100), (80, 10, 190, 120)], [1, 3]),
    ([(5, 5, 60, 60)], [2]),
    ([], []),
    ([(40, 20, 140, 90), (0, 0, 30, 30), (60, 30, 100, 80)], [3, 1, 2]),
]


def pictures() -> list[Tensor]:
    """Two photographs, whole and in part, normalized."""
    found = []
    for n, size in enumerate(SIZES):
        photo = torch.from_numpy(load_sample_images().images[n % 2].copy())
        image = photo.permute(2, 0, 1)[:, 60 * (n // 2) :, 100 * (n // 2) :].float()
        resized = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        found.append((resized - 110) / 60)
    return found


def padded(images: list[Tensor]) -> Tensor:
    batch = torch.zeros(len(images), 3, 160, 192)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch


def detectors(**options: object) -> tuple[Detector, MaskRCNN]:
    torch.manual_seed(0)
    config = detector(**{"box_loss_beta": 1 / 9, "box_samples": 32, **options})
    ours = build_detector(tiny(), load_norm("bn"), config, CLASSES)
    with torch.no_grad():  # sure enough of something to be found
        ours.get_parameter("roi_heads.box_predictor.cls_score.weight").mul_(100)
    parts = deepcopy(ours)
    heads = parts.roi_heads
    theirs = MaskRCNN(
        parts.backbone,
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
        rpn_anchor_generator=parts.rpn.anchor_generator,
        rpn_head=parts.rpn.head,
        rpn_pre_nms_top_n_train=50,
        rpn_post_nms_top_n_train=50,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_test=20,
        rpn_batch_size_per_image=32,
        box_roi_pool=heads.box_pool,
        box_head=heads.box_head,
        box_predictor=heads.box_predictor,
        box_batch_size_per_image=32,
        box_score_thresh=config.score_threshold,
        mask_roi_pool=heads.mask_pool,
        mask_head=heads.mask_head,
        mask_predictor=heads.mask_predictor,
    )
    theirs.transform.resize = lambda image, target: (image, target)
    return ours, theirs


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_losses_and_gradients_are_the_same() -> None:
    images = pictures()
    pairs = [scene(size, *boxes) for size, boxes in zip(SIZES, BOXES, strict=True)]
    targets: list[Targets] = [target for target, _ in pairs]
    ours, theirs = detectors()
    torch.manual_seed(5)
    losses = ours.train()(padded(images), SIZES, targets)
    torch.manual_seed(5)
    expected = theirs.train()(images, [target for _, target in pairs])
    assert isinstance(losses, dict)
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        assert float(loss.detach()) > 0
        torch.testing.assert_close(losses[name], loss, rtol=1e-5, atol=1e-6, msg=name)
    for each in (losses, expected):
        torch.stack(list(each.values())).sum().backward()
    found, wanted = gradients(ours), gradients(theirs)
    assert found.keys() == wanted.keys()
    assert len(found) > 40
    for name, gradient in wanted.items():
        # By the gradient's own size: sums of many terms are rounded in another order.
        limit = 1e-4 * float(gradient.abs().max()) + 1e-7
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=limit, msg=name)


def test_detections_are_the_same() -> None:
    images = pictures()
    ours, theirs = detectors(score_threshold=0.1)
    with torch.inference_mode():
        found = ours.eval()(padded(images), SIZES)
        expected = theirs.eval()(images)
    assert isinstance(found, list)
    for mine, other, (height, width) in zip(found, expected, SIZES, strict=True):
        assert len(mine) == len(other["boxes"]) > 3
        assert torch.equal(mine.boxes, other["boxes"])
        assert torch.equal(mine.scores, other["scores"])
        assert torch.equal(mine.labels, other["labels"])
        assert mine.masks is not None
        whole = paste_masks_in_image(mine.masks[:, None], mine.boxes, (height, width))
        torch.testing.assert_close(whole, other["masks"])
    assert {int(label) for mine in found for label in mine.labels} == {1, 2, 3}


def test_the_smooth_l1_of_2019_differs() -> None:
    """By default the box loss is Detectron's and mmdetection's: smaller where offsets are."""
    targets = [scene(size, *boxes)[0] for size, boxes in zip(SIZES, BOXES, strict=True)]
    losses = []
    for beta in (1 / 9, 1.0):
        model, _ = detectors(box_loss_beta=beta)
        torch.manual_seed(5)
        losses.append(model.train()(padded(pictures()), SIZES, targets))
    assert losses[1]["loss_box_reg"].item() < 0.95 * losses[0]["loss_box_reg"].item()
    same = losses[0]["loss_classifier"].item()
    assert losses[1]["loss_classifier"].item() == pytest.approx(same, rel=1e-6)
