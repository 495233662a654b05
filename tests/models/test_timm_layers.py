"""Normalizers and attention of timm: what they replace, and where their parameters are filed."""

from __future__ import annotations

import pytest
import torch
from timm.layers import StdConv2d
from torch import nn

import attnorm
import attnorm.norms.dynamic_tanh
from attnorm.errors import UserError
from attnorm.models.timm_layers import ATTENTIONS, NORMS, NORMS_WITH_ACTIVATION
from attnorm.norms import is_normalizer
from attnorm.norms.ghost import GhostBatchNorm2d
from tests.models.test_decay_groups import names_by_group

NAMED = ("gn1", "ln2d", "rms2d", "evonorm_s0", "frn", "dyt", "ghost_bn", "gn_ws")
ATTENTION = ("eca", "cbam", "gc")
SMALL = {"timm_model": "resnet10t", "squeeze_sites": r"layer\d\.\d+\.bn2"}


def _small(norm: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return attnorm.create_model("timm", norm, 5, **SMALL, **options).train()


@pytest.mark.parametrize("norm", NAMED)
@pytest.mark.parametrize("arch", ["resnet50", "mobilenetv2"])
def test_each_named_normalizer_stands_everywhere_and_learns(arch: str, norm: str) -> None:
    options = {"group_size": 8} if (arch, norm) == ("mobilenetv2", "evonorm_s0") else None
    overrides = {"options": options} if options else {}
    torch.manual_seed(0)
    model = attnorm.create_model(arch, norm, 5, **overrides).train()
    sites = [m for m in attnorm.create_model(arch, "bn", 5).modules() if _is_batch_norm(m)]
    standing = [module for module in model.modules() if is_normalizer(module)]
    assert len(standing) == len(sites)
    if norm != "ghost_bn":
        assert not any(_is_batch_norm(module) for module in model.modules())
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    groups = names_by_group(model)
    own = {id(p) for module in standing for p in module.parameters(recurse=False)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in own}
    assert set(groups["norm"]) == names, "what stands for a normalizer does not decay as a weight"
    assert all(name.endswith(("weight", "bias")) for name in groups["weights"])


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d)


@pytest.mark.parametrize("norm", ["evonorm_s0", "frn"])
def test_a_normalizer_with_an_activation_takes_the_relus_place_where_there_is_one(
    norm: str,
) -> None:
    plain = attnorm.create_model("resnet50", "bn", 5)
    model = attnorm.create_model("resnet50", norm, 5)
    counts = [sum(isinstance(m, nn.ReLU) for m in net.modules()) for net in (plain, model)]
    assert counts == [1 + 3 * 16, 16]  # those after additions stay
    acting = [n for n, m in model.named_modules() if getattr(m, "apply_act", False)]
    assert len(acting) == 1 + 2 * 16
    assert all(name.endswith(("bn1", "bn2")) for name in acting)
    mobile = attnorm.create_model("mobilenetv2", norm, 5, options={"group_size": 8})
    assert not any(isinstance(m, nn.ReLU6) for m in mobile.modules())
    projections = [m for n, m in mobile.named_modules() if n.endswith("bn3")]
    assert projections
    assert not any(m.apply_act for m in projections)


@pytest.mark.parametrize("name", [*NORMS, *NORMS_WITH_ACTIVATION])
def test_each_2d_normalizer_of_timm_is_there_by_name(name: str) -> None:
    # The stem has 24 channels, which 32 groups do not divide.
    options = {"num_groups": 8} if name == "groupnorm" else {}
    options = {"group_size": 8} if name.startswith("evonorms") else options
    model = _small("timm", timm_name=name, options=options)
    y = model(torch.randn(2, 3, 32, 32))
    assert y.isfinite().all()
    assert not any(type(module) is nn.BatchNorm2d for module in model.modules())


@pytest.mark.parametrize("name", ATTENTIONS)
def test_each_channel_attention_of_timm_is_there_by_name(name: str) -> None:
    model = _small("timm_attn", timm_name=name)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    plain = sum(p.numel() for p in _small("bn").parameters())
    assert sum(p.numel() for p in model.parameters()) > plain


@pytest.mark.parametrize("norm", ATTENTION)
def test_the_named_attentions_sit_in_every_block(norm: str) -> None:
    model = attnorm.create_model("resnet50", norm, 5)
    blocks = [m for n, m in model.named_modules() if n.endswith(".se")]
    assert len(blocks) == 16
    assert not any(isinstance(block, nn.Identity) for block in blocks)


def test_what_does_not_fit_is_refused() -> None:
    for norm, name in (("timm", "eca"), ("timm", "layernorm"), ("timm_attn", "evonorms0")):
        with pytest.raises(UserError, match=f"norm.timm_name={name}"):
            _small(norm, timm_name=name)
    with pytest.raises(UserError, match=r"16 channels cannot be shared by 32 groups.*group_size"):
        attnorm.create_model("mobilenetv2", "evonorm_s0")
    with pytest.raises(UserError, match=r"normalizer of 24 channels: num_channels"):
        _small("timm", timm_name="groupnorm")


def test_weight_standardization_normalizes_every_kernel() -> None:
    model = _small("gn_ws")
    plain = _small("gn")
    kernels = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(isinstance(kernel, StdConv2d) for kernel in kernels)
    assert model.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        for kernel in kernels:
            kernel.weight.mul_(3).add_(1)  # neither scale nor mean of a kernel matters
        torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-3)


def test_ghost_batch_norm_takes_statistics_of_parts_of_a_batch() -> None:
    torch.manual_seed(0)
    ghost, plain = GhostBatchNorm2d(4, ghost_batch=3), nn.BatchNorm2d(4)
    x = torch.randn(8, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    y = ghost(x)
    expected = torch.cat([plain(part) for part in x.split(3)])
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(ghost.running_var, plain.running_var)
    ghost.eval()
    plain.eval()
    assert torch.equal(ghost(x), plain(x))
    assert not torch.allclose(y, nn.BatchNorm2d(4)(x), atol=1e-3)


def test_dynamic_tanh_is_its_equation() -> None:
    layer = attnorm.norms.dynamic_tanh.DynamicTanh2d(3, initial_alpha=0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        layer.bias.copy_(torch.tensor([0.0, -1.0, 0.5]))
    x = torch.randn(2, 3, 4, 4)
    gamma, beta = layer.weight.view(3, 1, 1), layer.bias.view(3, 1, 1)
    torch.testing.assert_close(layer(x), gamma * torch.tanh(0.5 * x) + beta)


def test_ghost_and_synchronized_statistics_exclude_each_other() -> None:
    from attnorm.models.sync_bn import synchronize

    with pytest.raises(UserError, match="ghost batch norm"):
        synchronize(_small("ghost_bn"), torch.device("cpu"))
