"""Swapping batch norms in any network: what is kept, what is fused, what is refused."""

import copy
from collections import OrderedDict

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional

import attnorm
from attnorm.norms import AttentiveNorm2d, SwitchNorm2d
from attnorm.norms.group import GroupNorm2d


class OwnNetwork(nn.Module):
    """A person's own CNN: two stages, a ReLU called as a function, and one BN without affine."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU())
        self.stage2 = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(8, 12, 3), bn=nn.BatchNorm2d(12, momentum=0.3))
        )
        self.last = nn.BatchNorm2d(12, affine=False)
        self.classifier = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.last(self.stage2(self.stage1(x))))
        return self.classifier(x.mean((2, 3)))


def trained(model: nn.Module) -> nn.Module:
    """With running statistics and scales that are not those of a new model."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 32, 32) * 2 + 1)
    return model.eval()


def attentive(model: nn.Module) -> dict[str, AttentiveNorm2d]:
    return {n: m for n, m in model.named_modules() if isinstance(m, AttentiveNorm2d)}


def test_every_batch_norm_of_an_own_network_can_be_replaced() -> None:
    model = attnorm.convert(OwnNetwork(), norm="an", num_components=3)
    assert list(attentive(model)) == ["stage1.1", "stage2.bn", "last"]
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 4)


def test_components_go_by_stage_and_options_are_inherited() -> None:
    model = attnorm.convert(
        OwnNetwork(), norm="an", sites=r"stage(\d)\.(?:1|bn)", num_components=[2, 7]
    )
    first, second = attentive(model)["stage1.1"], attentive(model)["stage2.bn"]
    assert (first.num_components, second.num_components) == (2, 7)
    assert (first.stage, second.stage) == (0, 1)
    assert (first.eps, second.momentum) == (1e-3, 0.3)
    assert type(model.last) is nn.BatchNorm2d


@pytest.mark.parametrize("norm", ["an", "gn", "sn"])
def test_all_other_weights_and_the_running_statistics_are_kept(norm: str) -> None:
    original = trained(OwnNetwork())
    before = copy.deepcopy(original.state_dict())
    after = attnorm.convert(original, norm=norm).state_dict()
    statistics = {name for name in before if ".running_" in name or "num_batches" in name}
    scales = {
        f"{layer}.{leaf}" for layer in ("stage1.1", "stage2.bn") for leaf in ("weight", "bias")
    }
    not_kept = {"an": scales, "gn": statistics, "sn": set()}[norm]
    assert not_kept < before.keys()
    for name in before.keys() - not_kept:
        assert torch.equal(after[name], before[name]), name


def test_a_converted_network_normalizes_by_the_statistics_it_was_trained_with() -> None:
    model = trained(OwnNetwork())
    x = torch.randn(2, 3, 16, 16)
    expected = model.stage1(x)
    converted = attnorm.convert(copy.deepcopy(model), norm="an", num_components=1).eval()
    layer = attentive(converted)["stage1.1"]
    with torch.no_grad():  # one component with coefficient 1 is batch normalization
        layer.weight.copy_(model.stage1[1].weight[None])
        layer.bias.copy_(model.stage1[1].bias[None])
        layer.attention.weight.zero_()
        layer.attention.bias.fill_(100)
    torch.testing.assert_close(converted.stage1(x), expected, rtol=1e-4, atol=1e-5)


def test_a_relu_that_surely_follows_is_fused_and_no_other() -> None:
    model = attnorm.convert(OwnNetwork(), norm="an")
    layers = attentive(model)
    assert layers["stage1.1"].activation == "relu"
    assert type(model.stage1[2]) is nn.Identity
    assert layers["stage2.bn"].activation is None


@pytest.mark.parametrize(
    ("timm_model", "sites", "fused"),
    [
        ("resnet50", r"layer(\d)\.\d+\.bn2", 16),
        ("resnet18", r"layer(\d)\.\d+\.bn[12]", 8),  # not bn2: the shortcut comes before its ReLU
        ("densenet121", r"features\.denseblock(\d)\.denselayer\d+\.norm2", 58),
        ("mobilenetv2_100", r"blocks\.([1-6])\.\d+\.bn2", 0),  # ReLU6 is not ReLU
    ],
)
def test_in_timm_models_fusing_changes_nothing(timm_model: str, sites: str, fused: int) -> None:
    torch.manual_seed(0)
    model = trained(timm.create_model(timm_model, num_classes=5))
    reference = copy.deepcopy(model)
    converted = attnorm.convert(model, norm="an", sites=sites, num_components=2).eval()
    layers = attentive(converted)
    assert sum(layer.activation == "relu" for layer in layers.values()) == fused
    # The unconverted network with the very same layers put where its batch norms were.
    for name, layer in layers.items():
        plain = copy.deepcopy(layer)
        plain.activation = None
        site = name.removesuffix(".norm")
        old = reference.get_submodule(site)
        if isinstance(old, BatchNormAct2d):
            plain = nn.Sequential(plain, copy.deepcopy(old.act))
        parent, _, child = site.rpartition(".")
        setattr(reference.get_submodule(parent), child, plain)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(converted(x), reference(x), rtol=1e-3, atol=1e-4)


def test_a_batch_norm_used_twice_stays_one_layer_and_is_not_fused() -> None:
    shared = nn.BatchNorm2d(6)
    model = nn.Sequential(shared, nn.ReLU(), nn.Conv2d(6, 6, 1), shared)
    attnorm.convert(model, norm="an", num_components=2)
    assert model[0] is model[3]
    assert model[0].activation is None
    assert type(model[1]) is nn.ReLU


def test_a_lone_batch_norm_is_returned_replaced() -> None:
    layer = attnorm.convert(nn.BatchNorm2d(12).double().eval(), norm="gn", num_groups=5)
    assert isinstance(layer, GroupNorm2d)
    assert layer.num_groups == 4
    assert layer.weight.dtype == torch.float64
    assert not layer.training


def test_options_reach_the_layer() -> None:
    model = attnorm.convert(OwnNetwork(), norm="sn", using_bn=False)
    assert isinstance(model.last, SwitchNorm2d)
    assert not model.last.using_bn
    model = attnorm.convert(OwnNetwork(), norm="an", backbone="gn", attention="conv_relu")
    assert attentive(model)["last"].backbone == "gn"


def test_squeeze_units_follow_the_named_modules() -> None:
    model = attnorm.convert(OwnNetwork(), norm="se", sites=r"stage\d\.(0|conv)", reduction=4)
    assert type(model.stage1[0].transform) is nn.Conv2d
    assert model.stage2.conv.squeeze.fc1.weight.shape == (8, 12, 1, 1)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": r"nowhere\.bn"}, "matches no module"),
        ({"sites": r"stage1\.0"}, "Conv2d, which is not a 2-D batch norm"),
        ({"sites": "("}, "not a regular expression"),
        ({"norm": "xn"}, "norm=xn is not known"),
        ({"width": 3}, "width is not a key"),
        ({"norm": "gn", "num_components": 3}, "num_components is not a key"),
        ({"num_components": 0}, "num_components=0"),
        ({"backbone": "wn"}, "backbone=wn"),
        ({"norm": "gn", "num_groups": "many"}, "num_groups"),
        ({"sites": r"stage(\d)\.(1|bn)", "num_components": [1, 2, 3]}, "3 numbers.*2 stage"),
        ({"norm": "se"}, "needs sites"),
        ({"norm": "se", "sites": r"stage1\.2"}, "ReLU, which does not say how many channels"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_named(options: dict, message: str) -> None:
    with pytest.raises(attnorm.UserError, match=message):
        attnorm.convert(OwnNetwork(), **options)


def test_a_network_without_2d_batch_norms_is_refused() -> None:
    with pytest.raises(attnorm.UserError, match="no 2-D batch norm"):
        attnorm.convert(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), norm="an")
