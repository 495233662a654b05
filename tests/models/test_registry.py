"""The names that importing attnorm adds to timm."""

import pytest
import timm
import torch
from torch import nn

import attnorm
from attnorm.norms import AttentiveNorm2d
from tests.models.conftest import ARCHITECTURES

TIMM_NAMES = {
    "resnet50": ("resnet50", {}),
    "resnet101": ("resnet101c", {}),
    "densenet161": ("densenet161", {"stem_type": "deep"}),
    "mobilenetv2": ("mobilenetv2_100", {}),
}


def components(model: nn.Module) -> list[int]:
    return [m.num_components for m in model.modules() if isinstance(m, AttentiveNorm2d)]


def test_every_architecture_has_its_four_names() -> None:
    names = [f"{arch}_{norm}" for arch in ARCHITECTURES for norm in ("an", "gn", "sn", "se")]
    assert all(timm.is_model(name) for name in names)
    assert set(timm.list_models("*_an")) == {f"{arch}_an" for arch in ARCHITECTURES}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_registered_model_is_the_one_create_model_builds(arch: str) -> None:
    ours = attnorm.create_model(arch, norm="an", num_classes=10)
    theirs = timm.create_model(f"{arch}_an", num_classes=10)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_timms_own_resnet50_gn_is_kept_and_is_the_same_network() -> None:
    theirs = timm.create_model("resnet50_gn", num_classes=10)
    assert timm.models._registry._model_to_module["resnet50_gn"] == "resnet"
    ours = attnorm.create_model("resnet50", norm="gn", num_classes=10)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_features_only_gives_the_pyramid_that_timm_gives(arch: str) -> None:
    name, options = TIMM_NAMES[arch]
    theirs = timm.create_model(name, features_only=True, **options)
    ours = timm.create_model(f"{arch}_an", num_classes=10, features_only=True)
    x = torch.randn(1, 3, 64, 64)
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()
    with torch.no_grad():
        shapes = [feature.shape for feature in ours.eval()(x)]
        assert shapes == [feature.shape for feature in theirs.eval()(x)]


def test_a_shortened_pyramid_keeps_k_of_its_stages() -> None:
    net = timm.create_model("resnet50_an", features_only=True, out_indices=(1, 3))
    assert net.feature_info.channels() == [256, 1024]
    assert components(net) == [10] * 7 + [20] * 6


def test_the_last_feature_is_that_of_the_classifier_network() -> None:
    torch.manual_seed(0)
    whole = timm.create_model("resnet50_an", num_classes=10).eval()
    net = timm.create_model("resnet50_an", features_only=True).eval()
    net.model.load_state_dict(whole.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(net(x)[-1], whole.forward_features(x))


def test_options_of_timm_and_of_the_normalizer_both_pass() -> None:
    model = timm.create_model("mobilenetv2_an", num_classes=3, in_chans=1, num_components=2)
    assert set(components(model)) == {2}
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 3)
    with pytest.raises(attnorm.UserError, match="num_components"):
        timm.create_model("resnet50_an", num_components=[1, 2])
