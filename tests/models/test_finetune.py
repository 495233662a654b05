"""Freezing for fine-tuning (paper, §4.2): what stays, what learns, what is used."""

import copy

import pytest
import torch
from torch import nn

import attnorm
from attnorm.models.sites import match_sites
from attnorm.norms import AttentiveNorm2d

SITES = r"stage(\d)\.an"


def small(**options: object) -> nn.Module:
    stages = [nn.Sequential() for _ in range(3)]
    for index, stage in enumerate(stages):
        stage.add_module("conv", nn.Conv2d(3 if index == 0 else 6, 6, 3, padding=1))
        stage.add_module("an", nn.BatchNorm2d(6))
        stage.add_module("plain", nn.BatchNorm2d(6))
    model = nn.Sequential()
    for index, stage in enumerate(stages):
        model.add_module(f"stage{index}", stage)
    return attnorm.convert(model, norm="an", sites=SITES, num_components=2, **options)


@pytest.mark.parametrize("attention", ["sigmoid", "released", "conv_relu"])
def test_scales_and_statistics_freeze_and_heads_learn_but_for_the_first_stage(
    attention: str,
) -> None:
    torch.manual_seed(0)
    model = attnorm.freeze_for_finetuning(small(attention=attention))
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    convolutions = {f"stage{s}.conv.{leaf}" for s in range(3) for leaf in ("weight", "bias")}
    heads = {n for n, _ in model.named_parameters() if ".attention." in n and "stage0" not in n}
    assert heads
    assert learning == convolutions | heads

    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.train()
    for _ in range(2):
        loss = model(torch.randn(4, 3, 8, 8) + 2).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= learning
    assert "stage2.conv.weight" in changed
    assert any(name.startswith("stage1.an.attention.") for name in changed)


def test_frozen_layers_normalize_by_running_statistics_in_training_too() -> None:
    torch.manual_seed(0)
    model = small()
    model.train()(torch.randn(8, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8) * 3
    expected = copy.deepcopy(model).eval()(x)
    frozen = attnorm.freeze_for_finetuning(model).train()
    torch.testing.assert_close(frozen(x), expected)
    torch.testing.assert_close(copy.deepcopy(frozen).train()(x), expected)


def test_freezing_twice_changes_nothing() -> None:
    model = attnorm.freeze_for_finetuning(attnorm.freeze_for_finetuning(small()))
    assert all(len(m._forward_pre_hooks) <= 1 for m in model.modules())


def test_an_architecture_knows_its_first_stage() -> None:
    model = attnorm.freeze_for_finetuning(attnorm.create_model("resnet50", norm="an"))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, AttentiveNorm2d)}
    for name, layer in layers.items():
        assert layer.attention.weight.requires_grad == (not name.startswith("layer1"))
        assert not layer.weight.requires_grad
    assert not model.bn1.weight.requires_grad
    assert model.conv1.weight.requires_grad


def test_a_network_with_other_norms_alone_freezes_their_scales() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.BatchNorm2d(4))
    attnorm.freeze_for_finetuning(model)
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False, False, False]


def test_stages_that_are_not_known_must_be_given() -> None:
    model = nn.Sequential(AttentiveNorm2d(4), AttentiveNorm2d(4))
    with pytest.raises(attnorm.UserError, match="sites=PATTERN"):
        attnorm.freeze_for_finetuning(model)
    attnorm.freeze_for_finetuning(model, sites=r"(\d)")
    assert not model[0].attention.weight.requires_grad
    assert model[1].attention.weight.requires_grad
    assert [site.stage for site in match_sites(model, r"(\d)", "sites")] == [0, 1]
    with pytest.raises(attnorm.UserError, match="not an AttentiveNorm2d"):
        attnorm.freeze_for_finetuning(model, sites=r"\d\.attention")
