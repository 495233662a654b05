"""Freezing a detector's body: what learns, what is used, and what stays as it is."""

from __future__ import annotations

import copy

import pytest
import torch

from attnorm.config import load_arch, load_norm
from attnorm.detection.backbone import Backbone, build_backbone
from attnorm.detection.freeze import freeze
from attnorm.errors import UserError
from tests.detection.networks import detector, randomize, tiny


def build(norm: str = "an", **options: object) -> Backbone:
    torch.manual_seed(0)
    backbone = build_backbone(tiny(**options), load_norm(norm), detector())
    randomize(backbone.body)
    return backbone


def learning(backbone: Backbone) -> set[str]:
    return {name for name, p in backbone.body.named_parameters() if p.requires_grad}


def changed_by_training(backbone: Backbone) -> set[str]:
    """What two steps change, running statistics included."""
    before = copy.deepcopy(backbone.body.state_dict())
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1e-3)
    backbone.train()
    for _ in range(2):
        loss = sum(x.square().mean() for x in backbone(torch.randn(2, 3, 64, 64)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = backbone.body.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def names(backbone: Backbone, *parts: str) -> set[str]:
    """Parameters with one of ``parts`` in their names."""
    own = {name for name, _ in backbone.body.named_parameters()}
    return {name for name in own if any(part in name for part in parts)}


def test_paper_lets_convolutions_and_attention_learn_but_for_the_first_stage() -> None:
    backbone = build()
    freeze(backbone, "paper", frozen_stages=1)
    convolutions = names(backbone, ".conv1.weight", ".conv2.weight", ".downsample.1.weight")
    heads = names(backbone, ".attention.")
    stages = ("layer2.", "layer3.", "layer4.")
    expected = {name for name in convolutions | heads if name.startswith(stages)}
    assert len([name for name in expected if ".attention." in name]) == 6
    assert learning(backbone) == expected
    assert all(parameter.requires_grad for parameter in backbone.fpn.parameters())
    changed = changed_by_training(backbone)
    assert changed <= expected
    assert {"layer2.0.conv1.weight", "layer4.0.bn2.attention.bias"} <= changed


def test_released_lets_scales_learn_too_on_fixed_statistics() -> None:
    backbone = build()
    freeze(backbone, "released", frozen_stages=1)
    stages = ("layer2.", "layer3.", "layer4.")
    expected = {name for name in names(backbone, "") if name.startswith(stages)}
    assert learning(backbone) == expected
    changed = changed_by_training(backbone)
    assert changed <= expected
    assert {"layer2.0.bn1.weight", "layer4.0.bn2.weight", "layer4.0.bn2.attention.bias"} <= changed


def test_none_lets_everything_learn_and_statistics_follow_the_batches() -> None:
    backbone = build()
    freeze(backbone, "none", frozen_stages=1)
    assert learning(backbone) == names(backbone, "")
    changed = changed_by_training(backbone)
    assert {"conv1.0.weight", "bn1.running_mean", "layer4.0.bn2.running_var"} <= changed


@pytest.mark.parametrize("mode", ["paper", "released"])
@pytest.mark.parametrize("norm", ["an", "bn"])
def test_training_uses_the_statistics_of_evaluation(mode: str, norm: str) -> None:
    backbone = build(norm)
    freeze(backbone, mode, frozen_stages=1)
    images = torch.randn(2, 3, 64, 64)
    expected = copy.deepcopy(backbone).eval()(images)
    for name, x in backbone.train()(images).items():
        assert torch.equal(x, expected[name])


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_group_norms_of_the_first_stage_alone_or_all_of_them_freeze(mode: str) -> None:
    backbone = build("gn")
    freeze(backbone, mode, frozen_stages=1)
    scales = {name for name in learning(backbone) if ".bn1." in name or ".bn2." in name}
    later = names(backbone, ".bn1.", ".bn2.") - names(backbone, "layer1.")
    assert scales == (set() if mode == "paper" else later)


@pytest.mark.parametrize(
    ("frozen_stages", "prefixes"),
    [
        (-1, ()),
        (0, ("conv1.", "bn1.")),
        (1, ("conv1.", "bn1.", "layer1.")),
        (3, ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.")),
        (4, ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")),
    ],
)
def test_the_stem_and_the_first_stages_do_not_learn(
    frozen_stages: int, prefixes: tuple[str, ...]
) -> None:
    backbone = build()
    freeze(backbone, "released", frozen_stages)
    still = {name for name in names(backbone, "") if name not in learning(backbone)}
    assert still == {name for name in names(backbone, "") if name.startswith(prefixes)}


def test_stages_of_other_networks_end_where_a_map_is_taken() -> None:
    for arch, first, after in (
        ("mobilenetv2", ("conv_stem.", "bn1.", "blocks.0.", "blocks.1."), "blocks.2.0.bn1.weight"),
        (
            "densenet161",
            (
                *(f"features.{name}{i}." for i in range(3) for name in ("conv", "norm")),
                "features.denseblock1.",
            ),
            "features.transition1.norm.weight",
        ),
    ):
        with torch.device("meta"):
            backbone = build_backbone(load_arch(arch), load_norm("an"), detector())
        freeze(backbone, "released", frozen_stages=1)
        still = names(backbone, "") - learning(backbone)
        assert still == {name for name in names(backbone, "") if name.startswith(first)}
        assert after in learning(backbone)


def test_stages_that_cannot_be_told_apart_are_refused_where_they_matter() -> None:
    one_stage = {"attentive_sites": r"layer\d\.\d+\.bn2"}
    freeze(build(**one_stage), "released", frozen_stages=1)
    with pytest.raises(UserError) as refused:
        freeze(build(**one_stage), "paper", frozen_stages=1)
    message = str(refused.value)
    assert message.startswith("detector.freeze=paper keeps the attention heads of the first stage")
    assert "arch.attentive_sites" in message
    assert "detector.freeze=released" in message


def test_more_stages_than_there_are_are_refused() -> None:
    with pytest.raises(UserError, match=r"detector.frozen_stages=5 is not possible.* 4 stages"):
        freeze(build(), "paper", frozen_stages=5)
