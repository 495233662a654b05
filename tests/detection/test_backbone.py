"""Bodies of timm under a pyramid: which maps, in which order, under which names."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from attnorm.config import ArchConfig, load_arch, load_norm
from attnorm.detection.backbone import build_backbone
from attnorm.errors import UserError
from attnorm.models import build_model
from attnorm.norms import AttentiveNorm2d, GroupNorm2d, SwitchNorm2d
from tests.detection.networks import detector, tiny

NETWORKS = {
    "resnet10t": {},
    "mobilenetv2_035": {},
    "densenet121": {"stem_type": "deep"},
    "regnetx_002": {},
}


def arch(timm_model: str, **overrides: object) -> ArchConfig:
    options = {"timm_options": NETWORKS[timm_model], **overrides}
    return load_arch("timm", timm_model=timm_model, **options)


@pytest.mark.parametrize("timm_model", NETWORKS)
def test_maps_are_those_of_timms_features_only(timm_model: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(arch(timm_model), load_norm("bn"), detector()).eval()
    assert backbone.strides == (4, 8, 16, 32)
    indices = (1, 2, 3, 4)
    theirs = timm.create_model(
        timm_model, features_only=True, out_indices=indices, **NETWORKS[timm_model]
    ).eval()
    own, copy = backbone.body.state_dict(), theirs.state_dict()
    assert len(own) == len(copy)
    theirs.load_state_dict(dict(zip(copy, own.values(), strict=True)))
    images = torch.randn(2, 3, 96, 64)
    for mine, other in zip(backbone.maps(images), theirs(images), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("timm_model", NETWORKS)
def test_weights_have_the_names_of_the_classifiers(timm_model: str) -> None:
    with torch.device("meta"):
        classifier = build_model(arch(timm_model), load_norm("bn"), num_classes=1)
        backbone = build_backbone(arch(timm_model), load_norm("bn"), detector())
    own, all_names = set(backbone.body.state_dict()), set(classifier.state_dict())
    assert own < all_names
    assert all_names - own == backbone.dropped
    stem = {name.split(".")[0] for name in backbone.dropped}
    expected = {
        "mobilenetv2_035": {"conv_head", "bn2", "classifier"},
        "resnet10t": {"fc"},
        "densenet121": {"classifier"},
        "regnetx_002": {"head"},
    }
    assert stem == expected[timm_model]


def test_the_pyramid_halves_its_maps_and_ends_with_a_subsampled_one() -> None:
    backbone = build_backbone(tiny(), load_norm("an"), detector(channels=24))
    pyramid = backbone(torch.randn(1, 3, 96, 160))
    assert {name: tuple(x.shape) for name, x in pyramid.items()} == {
        "0": (1, 24, 24, 40),
        "1": (1, 24, 12, 20),
        "2": (1, 24, 6, 10),
        "3": (1, 24, 3, 5),
        "pool": (1, 24, 2, 3),
    }
    assert list(pyramid) == ["0", "1", "2", "3", "pool"]
    assert torch.equal(pyramid["pool"], pyramid["3"][:, :, ::2, ::2])
    assert backbone.out_channels == 24
    pyramid["pool"].sum().backward()
    assert backbone.body.get_parameter("conv1.0.weight").grad is not None


def test_normalizers_are_placed_before_the_cut() -> None:
    """Stages keep their K, whatever maps are taken."""
    norm = load_norm("an", num_components=[2, 3, 4, 5])
    config = detector(out_indices=[0, 1, 2, 3])
    backbone = build_backbone(tiny(), norm, config)
    assert backbone.strides == (2, 4, 8, 16)
    assert backbone.stages == ("act1", "layer1", "layer2", "layer3")
    found = {
        name: module.num_components
        for name, module in backbone.body.named_modules()
        if isinstance(module, AttentiveNorm2d)
    }
    assert found == {"layer1.0.bn2": 2, "layer2.0.bn2": 3, "layer3.0.bn2": 4}
    assert any(name.startswith("layer4.") for name in backbone.dropped)


@pytest.mark.parametrize(("last_map", "channels"), [("blocks", 112), ("conv_head", 1280)])
def test_mobilenets_last_map_comes_before_or_after_its_last_convolution(
    last_map: str, channels: int
) -> None:
    torch.manual_seed(0)
    config = detector(last_map=last_map)
    backbone = build_backbone(arch("mobilenetv2_035"), load_norm("bn"), config).eval()
    classifier = timm.create_model("mobilenetv2_035", num_classes=1).eval()
    classifier.load_state_dict(backbone.body.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64)
    *others, last = backbone.maps(images)
    assert [x.shape[1] for x in others] == [8, 16, 32]
    assert last.shape == (1, channels, 2, 2)
    if last_map == "conv_head":
        assert torch.equal(last, classifier.forward_features(images))
    assert list(backbone(images)) == ["0", "1", "2", "3", "pool"]


@pytest.mark.parametrize(
    ("norm", "kind"), [("gn", GroupNorm2d), ("sn", SwitchNorm2d), ("an", AttentiveNorm2d)]
)
def test_the_pyramid_has_the_normalizer_of_its_key(norm: str, kind: type[nn.Module]) -> None:
    config = detector(fpn_norm=norm, head_components=[2, 3, 4, 5])
    fpn = build_backbone(tiny(), load_norm("bn"), config).fpn
    norms = [module for module in fpn.modules() if isinstance(module, kind)]
    assert len(norms) == 8
    assert not [m for m in fpn.modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
    if norm == "an":
        for blocks in (fpn.inner_blocks, fpn.layer_blocks):
            found = [m.num_components for m in blocks.modules() if isinstance(m, AttentiveNorm2d)]
            assert found == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("options", "config", "message"),
    [
        (
            {"timm_model": "vit_tiny_patch16_224"},
            {},
            "arch.timm_model=vit_tiny_patch16_224 has maps of strides 16; a pyramid needs",
        ),
        ({}, {"out_indices": [1, 2, 3]}, "detector.out_indices=[1, 2, 3] is not possible: give"),
        ({}, {"out_indices": [0, 1, 2, 4]}, "resnet10t has (index: stride) 0: 2, 1: 4, 2: 8"),
        ({}, {"out_indices": [1, 2, 3, 9]}, "detector.out_indices=[1, 2, 3, 9] is not possible"),
        ({}, {"last_map": "conv_head"}, "arch.timm_model=resnet10t has no conv_head"),
        ({"timm_model": "resnet_50"}, {}, "arch.timm_model=resnet_50 is not a model of timm"),
    ],
)
def test_what_has_no_such_maps_is_refused(
    options: dict[str, object], config: dict[str, object], message: str
) -> None:
    with torch.device("meta"), pytest.raises(UserError) as refused:
        build_backbone(tiny(**options), load_norm("bn"), detector(**config))
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 3
