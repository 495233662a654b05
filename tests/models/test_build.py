"""Architecture × normalizer: where layers sit, K by stage, initialisation, and what is refused."""

import re

import pytest
import torch
from timm.layers import SqueezeExcite
from torch import nn

import attnorm
from attnorm.config import load_arch, load_norm
from attnorm.models.build import build_model
from attnorm.norms import AttentiveNorm2d, GroupNorm2d, SwitchNorm2d
from tests.models.conftest import ARCHITECTURES, structure


def attentive(model: nn.Module) -> dict[str, AttentiveNorm2d]:
    return {n: m for n, m in model.named_modules() if isinstance(m, AttentiveNorm2d)}


@pytest.mark.parametrize(
    ("arch", "layers", "components"),
    [
        ("resnet50", [3, 4, 6, 3], [10, 10, 20, 20]),
        ("resnet101", [3, 4, 23, 3], [10, 10, 20, 20]),
        ("densenet161", [6, 12, 36, 24], [10, 10, 20, 20]),
        ("mobilenetv2", [1, 2, 3, 4, 3, 3, 1], [5, 5, 5, 5, 10, 10, 10]),
    ],
)
def test_an_sits_once_per_block_with_k_by_stage(
    arch: str, layers: list[int], components: list[int]
) -> None:
    expected = [k for k, count in zip(components, layers, strict=True) for _ in range(count)]
    found = list(attentive(structure(arch, "an")).values())
    assert [layer.num_components for layer in found] == expected
    stages = [stage for stage, count in enumerate(layers) for _ in range(count)]
    assert [layer.stage for layer in found] == stages


def test_an_normalizes_the_convolution_that_the_paper_and_the_release_say() -> None:
    for name in attentive(structure("resnet50", "an")):
        block = structure("resnet50", "an").get_submodule(name.rpartition(".")[0])
        assert block.conv2.kernel_size == (3, 3)
        assert name.endswith(".bn2")
    for name in attentive(structure("densenet161", "an")):
        layer = structure("densenet161", "an").get_submodule(name.rpartition(".")[0])
        assert layer.conv1.kernel_size == (1, 1)
        assert name.endswith(".norm2")
    for name, module in attentive(structure("mobilenetv2", "an")).items():
        site = name.removesuffix(".norm")
        block = structure("mobilenetv2", "an").get_submodule(site.rpartition(".")[0])
        assert site.endswith(".bn1" if ".0.0." in site else ".bn2")
        assert block.conv_dw.out_channels == block.conv_dw.groups == module.num_features


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gn_and_sn_leave_no_batch_norm(arch: str) -> None:
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in structure(arch, "bn").modules())
    for norm, layer in (("gn", GroupNorm2d), ("sn", SwitchNorm2d)):
        modules = list(structure(arch, norm).modules())
        assert sum(isinstance(m, layer) for m in modules) == norms
        assert not any(isinstance(m, nn.BatchNorm2d) for m in modules)


@pytest.mark.parametrize(
    ("arch", "units", "pattern"),
    [
        ("resnet50", 16, r"layer\d\.\d+\.se"),
        ("resnet101", 33, r"layer\d\.\d+\.se"),
        ("densenet161", 78, r"features\.denseblock\d\.denselayer\d+\.conv2\.squeeze"),
        ("mobilenetv2", 17, r"blocks\.\d\.\d\.se"),
    ],
)
def test_se_sits_once_per_block_with_ratio_16(arch: str, units: int, pattern: str) -> None:
    found = {n: m for n, m in structure(arch, "se").named_modules() if isinstance(m, SqueezeExcite)}
    assert len(found) == units
    for name, unit in found.items():
        assert re.fullmatch(pattern, name)
        channels = unit.fc1.in_channels
        assert unit.fc1.out_channels == max(8, int(channels / 16 + 4) // 8 * 8)
        assert unit.fc1.bias is not None
        assert unit.fc2.bias is not None


def test_an_se_unit_computes_the_paper_definition_with_its_gradients() -> None:
    """Hu et al., equations 2-4: squeeze by average, excite by two FC layers, rescale."""
    torch.manual_seed(0)
    unit = attnorm.convert(nn.Conv2d(32, 32, 1), norm="se", sites="").squeeze.double()
    x = torch.randn(3, 32, 4, 5, dtype=torch.float64, requires_grad=True)
    w1, w2 = unit.fc1.weight.flatten(1), unit.fc2.weight.flatten(1)
    s = torch.sigmoid((x.mean((2, 3)) @ w1.T + unit.fc1.bias).relu() @ w2.T + unit.fc2.bias)
    expected = x * s[:, :, None, None]
    y = unit(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    gradient, inputs = torch.randn_like(y), [x, *unit.parameters()]
    wanted = torch.autograd.grad(expected, inputs, gradient)
    for got, want in zip(torch.autograd.grad(y, inputs, gradient), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_squeeze_units_are_applied_where_they_sit() -> None:
    model = attnorm.create_model("densenet161", norm="se", num_classes=4).eval()
    layer = model.features.denseblock1.denselayer1
    x = torch.randn(1, 96, 8, 8)
    without = layer.conv2.transform(layer.norm2(layer.conv1(layer.norm1(x))))
    torch.testing.assert_close(layer(x), layer.conv2.squeeze(without))


@pytest.mark.parametrize("norm", ["gn", "sn"])
def test_residual_branches_start_at_zero_where_the_authors_do_so(norm: str) -> None:
    resnet = attnorm.create_model("resnet50", norm=norm)
    assert all((block.bn3.weight == 0).all() for block in resnet.layer1)
    assert (resnet.layer1[0].bn2.weight == 1).all()
    mobile = attnorm.create_model("mobilenetv2", norm=norm)
    for stage in mobile.blocks[1:]:
        for block in stage:
            assert (block.bn3.weight == (0 if block.has_skip else 1)).all()


def test_the_last_scale_can_be_chosen() -> None:
    ones = attnorm.create_model("resnet50", norm="bn", zero_init_last=False)
    assert (ones.layer3[2].bn3.weight == 1).all()
    zeros = attnorm.create_model("mobilenetv2", norm="an", zero_init_last=True)
    assert (zeros.blocks[1][1].bn3.weight == 0).all()


def test_the_mixture_starts_as_the_paper_says() -> None:
    torch.manual_seed(0)
    layers = attentive(attnorm.create_model("resnet50", norm="an")).values()
    scales = torch.cat([layer.weight.flatten() for layer in layers])
    offsets = torch.cat([layer.bias.flatten() for layer in layers])
    for values, mean in ((scales, 1.0), (offsets, 0.0)):
        assert abs(values.mean().item() - mean) < 2e-3
        assert abs(values.std().item() - 0.1) < 2e-3


def test_components_can_be_overridden_by_a_number_or_by_stage() -> None:
    for wanted, expected in ((3, [3] * 16), ([1, 2, 3, 4], [1] * 3 + [2] * 4 + [3] * 6 + [4] * 3)):
        model = attnorm.create_model("resnet50", num_components=wanted)
        assert [layer.num_components for layer in attentive(model).values()] == expected


def test_any_timm_cnn_works_with_a_pattern_of_its_own() -> None:
    model = attnorm.create_model(
        "timm",
        timm_model="regnety_002",
        attentive_sites=r"s(\d)\.b\d+\.conv2\.bn",
        attentive_components=[2, 2, 4, 4],
        num_classes=3,
    )
    assert {layer.num_components for layer in attentive(model).values()} == {2, 4}
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    for norm in ("bn", "gn", "sn"):
        small = attnorm.create_model("timm", norm=norm, timm_model="resnet10t", num_classes=3)
        assert small(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_a_layer_of_ones_own_needs_nothing_but_its_path() -> None:
    norm = load_norm("bn", layer="torch.nn.InstanceNorm2d", options={"affine": True, "eps": 0.5})
    model = build_model(load_arch("mobilenetv2"), norm, num_classes=2)
    assert isinstance(model.blocks[0][0].bn2, nn.InstanceNorm2d)
    assert model.blocks[0][0].bn2.eps == 0.5
    assert model.blocks[0][0].bn2.running_mean is None


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("resnet51", {}, "arch=resnet51 is not known: choose one of .*resnet50"),
        ("resnet50", {"norm": "xn"}, "norm=xn is not known"),
        ("resnet50", {"depth": 3}, "depth is not a key"),
        ("resnet50", {"name": "x"}, "name is not a key"),
        ("resnet50", {"norm": "bn", "num_components": 3}, "num_components is not a key"),
        ("resnet50", {"num_components": [1, 2]}, r"norm.num_components=\[1, 2\] has 2 numbers"),
        ("resnet50", {"num_components": 0}, "norm.num_components=0"),
        ("resnet50", {"attentive_components": [1] * 5}, "arch.attentive_components=.* has 5"),
        ("resnet50", {"attentive_sites": "bn9"}, "arch.attentive_sites=bn9 matches no module"),
        ("resnet50", {"attentive_sites": "conv1"}, "Conv2d, which is not a 2-D batch norm"),
        ("resnet50", {"norm": "gn", "num_groups": 0}, "norm.num_groups=0"),
        ("resnet50", {"norm": "gn", "layer": "nowhere.Norm"}, "norm.layer=nowhere.Norm"),
        ("resnet50", {"norm": "se", "squeeze_slot": "bn1"}, "holds a BatchNorm2d"),
        ("resnet50", {"norm": "se", "squeeze_slot": "sq"}, "does not exist"),
        ("resnet50", {"timm_options": {"widht": 2}}, "arch.timm_options"),
        ("timm", {}, "arch.timm_model=''"),
        ("timm", {"timm_model": "resnet49"}, "did you mean .*resnet"),
        ("timm", {"timm_model": "resnet10t"}, "needs arch.attentive_sites"),
        ("timm", {"timm_model": "resnet10t", "norm": "se"}, "needs arch.squeeze_sites"),
        ("timm", {"timm_model": "convnext_atto", "norm": "gn"}, "no 2-D batch norm"),
    ],
)
def test_what_cannot_be_built_is_refused_and_named(arch: str, options: dict, message: str) -> None:
    with pytest.raises(attnorm.UserError, match=message):
        attnorm.create_model(arch, **options)


@pytest.mark.parametrize("norm", ["bn", "sn"])
def test_a_memory_efficient_densenet_trains_like_the_ordinary_one(norm: str) -> None:
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    models = []
    for efficient in (False, True):
        torch.manual_seed(1)
        options = {"growth_rate": 8, "block_config": [2, 2], "memory_efficient": efficient}
        model = attnorm.create_model(
            "timm", norm, num_classes=7, timm_model="densenet121", timm_options=options
        )
        calls: list[int] = []
        first = model.get_submodule("features.denseblock1.denselayer1.norm1")
        first.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        for _ in range(3):
            model.train()(images).square().mean().backward()
        assert len(calls) == (6 if efficient else 3), "backward computes it again"
        models.append(model)
    ordinary, efficient = models
    for name, parameter in ordinary.named_parameters():
        torch.testing.assert_close(
            efficient.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name
        )
    for name, buffer in ordinary.named_buffers():
        if "running" in name:
            torch.testing.assert_close(
                efficient.get_buffer(name), buffer, rtol=1e-4, atol=1e-6, msg=name
            )
