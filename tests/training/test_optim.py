"""The learning-rate curve and the filing of parameters into weight-decay groups."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from attnorm import AttentiveNorm2d, create_model
from attnorm.config import MultistepConfig, OptimConfig, ScheduleConfig, SGDConfig
from attnorm.training import optim
from attnorm.training.schedule import learning_rate


def test_the_cosine_falls_from_the_base_rate_to_zero_by_iteration() -> None:
    curve = [learning_rate(ScheduleConfig(), 0.2, step, 100, 10) for step in range(101)]
    assert curve[0] == 0.2
    assert curve[50] == pytest.approx(0.1)
    assert curve[25] == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)))
    assert curve[100] == pytest.approx(0, abs=1e-12)
    assert all(later < earlier for earlier, later in itertools.pairwise(curve))


def test_warmup_is_linear_and_ends_at_the_base_rate() -> None:
    schedule = ScheduleConfig(warmup_epochs=2)
    curve = [learning_rate(schedule, 0.2, step, 100, 10) for step in range(100)]
    assert curve[:20] == pytest.approx([0.2 * (step + 1) / 20 for step in range(20)])
    assert curve[20] == 0.2
    assert curve[60] == pytest.approx(0.1)


def test_a_warmup_may_be_stated_in_steps_and_begin_above_zero() -> None:
    schedule = MultistepConfig(milestones=[16, 22], warmup_steps=500, warmup_start=1 / 3)
    rates = [learning_rate(schedule, 0.02, step, 24_000, 1_000) for step in (0, 250, 499, 500)]
    assert rates == pytest.approx([0.02 / 3, 0.02 * 2 / 3, 0.02 * (1 - 2 / 3 / 500), 0.02])


def test_the_multistep_schedule_falls_at_its_milestones_and_nowhere_else() -> None:
    schedule = MultistepConfig(milestones=[2, 3.5], gamma=0.1)
    rates = [learning_rate(schedule, 0.5, step, 40, 10) for step in range(40)]
    assert rates == pytest.approx([0.5] * 20 + [0.05] * 15 + [0.005] * 5)


def test_the_learning_rate_scales_linearly_with_the_global_batch() -> None:
    assert optim.base_learning_rate(OptimConfig(lr=0.2), 512) == 0.2
    assert optim.base_learning_rate(OptimConfig(lr=0.2), 64) == pytest.approx(0.025)
    detection = OptimConfig(lr=0.02, reference_batch=16)
    assert optim.base_learning_rate(detection, 8) == pytest.approx(0.01)


class _Small(nn.Module):
    """One of each: convolution, batch norm, attentive norm, group norm, a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.attentive = AttentiveNorm2d(8, num_components=4)
        self.norm = nn.GroupNorm(2, 8)
        self.fc = nn.Linear(8, 5)
        self.again = self.fc
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_scales_and_offsets_are_norm_parameters_and_attention_heads_are_weights() -> None:
    model = _Small()
    groups = optim.parameter_groups(model, 1e-4, norm_weight_decay=False)
    filed = {id(p): group["name"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    names = {name: filed.get(id(p)) for name, p in model.named_parameters()}
    assert names == {
        "conv.weight": "weights",
        "conv.bias": "weights",
        "bn.weight": "norm",
        "bn.bias": "norm",
        "attentive.weight": "norm",
        "attentive.bias": "norm",
        "attentive.attention.weight": "weights",
        "attentive.attention.bias": "weights",
        "norm.weight": "norm",
        "norm.bias": "norm",
        "fc.weight": "weights",
        "fc.bias": "weights",
        "frozen.weight": None,
        "frozen.bias": None,
    }
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.0]


@pytest.mark.parametrize("norm", ["bn", "gn", "sn", "se", "an"])
def test_every_parameter_of_a_network_is_in_exactly_one_group(norm: str) -> None:
    model = create_model("mobilenetv2", norm, num_classes=10)
    groups = optim.parameter_groups(model, 1e-4, norm_weight_decay=True)
    filed = [id(p) for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(filed) == sorted(id(p) for p in model.parameters())
    assert [group["weight_decay"] for group in groups] == [1e-4, 1e-4]


def test_norm_weight_decay_off_leaves_scales_where_they_are() -> None:
    model = _Small()
    optimizer = optim.build_optimizer(model, SGDConfig(weight_decay=0.5, norm_weight_decay=False))
    optim.set_learning_rate(optimizer, 0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    after = dict(model.named_parameters())
    assert torch.equal(after["attentive.weight"], before["attentive.weight"])
    assert torch.equal(after["bn.weight"], before["bn.weight"])
    torch.testing.assert_close(after["conv.weight"], before["conv.weight"] * 0.95)
    torch.testing.assert_close(
        after["attentive.attention.weight"], before["attentive.attention.weight"] * 0.95
    )


def test_momentum_begins_at_zero_though_the_first_steps_overflow() -> None:
    """Under fp16's loss scaling the first steps usually do."""
    layer = nn.Linear(64, 64)
    optimizer = optim.build_optimizer(layer, SGDConfig(lr=0.1, weight_decay=0.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    scaler.scale(layer(torch.full((8, 64), 100.0)).square().sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    for parameter in layer.parameters():
        assert not optimizer.state[parameter]["momentum_buffer"].any()
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    optimizer.zero_grad()
    layer(torch.ones(8, 64)).sum().backward()
    gradients = [parameter.grad.clone() for parameter in layer.parameters()]
    optimizer.step()
    for parameter, start, gradient in zip(layer.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter, start - 0.1 * gradient)
