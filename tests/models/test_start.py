"""Where training starts: a new network knows nothing, and recovers from its first step.

The first loss of a classifier that knows nothing is ln(classes). A first gradient of 10⁴, as a
MobileNet-v2 has whose classifier starts too wide, ends runs before they began.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnorm import config as schema
from attnorm.config import LabelledImagesConfig, LoaderConfig
from attnorm.data.build import build_train_loader
from attnorm.distributed import Placement
from attnorm.errors import UserError
from attnorm.models import create_model
from attnorm.models.build import build_model
from attnorm.norms import AttentiveNorm2d

ARCHITECTURES = ("resnet50", "resnet101", "densenet161", "mobilenetv2")
NORMALIZERS = ("bn", "gn", "sn", "se", "an")
# Of the first gradient's norm. In MobileNet-v2 nearly all of it is the stem's.
BOUNDS = {"resnet50": 15, "resnet101": 15, "densenet161": 30, "mobilenetv2": 200}


@cache
def digits() -> tuple[Tensor, Tensor]:
    """A batch of 32 real scans of 64²."""
    config = LabelledImagesConfig(
        name="digits",
        source="digits",
        image_size=64,
        resize_size=64,
        workers=0,
    )
    loader = build_train_loader(
        config, LoaderConfig("torch"), Placement(torch.device("cpu"), 32), seed=0
    )
    images, labels = next(loader.epoch(0))
    return images, labels


def combinations() -> list[Any]:
    """Fast are AN with few classes, and every normalizer in a residual and an inverted network."""
    found = []
    for arch, norm, classes in itertools.product(ARCHITECTURES, NORMALIZERS, (10, 1000)):
        fast = classes == 10 and (norm == "an" or arch in ("resnet50", "mobilenetv2"))
        marks = () if fast else (pytest.mark.slow,)
        found.append(pytest.param(arch, norm, classes, marks=marks))
    return found


@pytest.mark.parametrize(("arch", "norm", "classes"), combinations())
def test_the_first_loss_is_that_of_knowing_nothing(arch: str, norm: str, classes: int) -> None:
    images, labels = digits()
    torch.manual_seed(0)
    model = create_model(arch, norm, num_classes=classes)
    # The larger gradients are those of ten classes: one in ten is right by chance.
    with torch.set_grad_enabled(classes == 10):
        loss = F.cross_entropy(model(images), labels)
    assert loss.item() == pytest.approx(math.log(classes), rel=0.05)
    if classes == 10:
        loss.backward()
        squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
        assert torch.stack(squares).sum().sqrt() < BOUNDS[arch]


def test_a_mixtures_start_is_a_key_of_architecture_and_normalizer() -> None:
    """The architecture's, unless the normalizer has one; Table 1's row has the paper's."""

    def scale(*overrides: str) -> float:
        config = schema.compose(["arch=mobilenetv2", "norm=an", *overrides])
        model = build_model(config.arch, config.norm, num_classes=3)
        weights = [m.weight.sum(0) / 2 for m in model.modules() if isinstance(m, AttentiveNorm2d)]
        return torch.cat(weights[:1]).mean().item()

    assert scale() == pytest.approx(1, abs=0.05)
    assert scale("norm.initial_scale=2") == pytest.approx(2, abs=0.1)
    assert scale("arch.attentive_scale=null") == pytest.approx(2.5, abs=0.1)
    assert scale("+experiment=table1/mobilenetv2_an") == pytest.approx(2.5, abs=0.1)
    with pytest.raises(UserError, match=r"arch\.attentive_scale=0"):
        schema.compose(["arch.attentive_scale=0"])


def test_a_classifiers_start_is_a_key() -> None:
    torch.manual_seed(0)
    model = create_model("mobilenetv2", "bn", num_classes=500)
    classifier = model.get_classifier()
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not classifier.bias.any()
    timms = create_model("mobilenetv2", "bn", num_classes=500, classifier_std=None)
    assert timms.get_classifier().weight.abs().max().item() == pytest.approx(500**-0.5, rel=0.01)
    zero = create_model("resnet50", "bn", num_classes=10, classifier_std=0.0)
    assert not zero.get_classifier().weight.any()
    assert isinstance(create_model("mobilenetv2", "bn", num_classes=0), nn.Module)
    with pytest.raises(UserError, match=r"arch\.classifier_std=-1"):
        create_model("resnet50", "bn", classifier_std=-1.0)


@pytest.mark.parametrize(
    ("arch", "fan"), [("resnet50", "out"), ("densenet161", "in"), ("mobilenetv2", "out")]
)
def test_convolutions_start_as_their_papers_say(arch: str, fan: str) -> None:
    """He et al. (2015): a variance of 2 / fan; a depthwise convolution's fan is its own window."""
    torch.manual_seed(0)
    for module in create_model(arch, "bn", num_classes=10).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5_000:
            window = math.prod(module.kernel_size) / module.groups
            channels = module.out_channels if fan == "out" else module.in_channels
            expected = math.sqrt(2 / (channels * window))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_trained_weights_keep_their_classifier(tmp_path: Path) -> None:
    model = create_model("mobilenetv2", "bn", num_classes=10, classifier_std=None)
    file = tmp_path / "weights.pth"
    torch.save(model.state_dict(), file)
    again = create_model("mobilenetv2", "bn", num_classes=10, pretrained=str(file))
    assert torch.equal(again.get_classifier().weight, model.get_classifier().weight)
