"""The learning-rate curve and the filing of parameters into weight-decay groups."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from timm.scheduler import PolyLRScheduler
from torch import Tensor, nn

from attnorm import AttentiveNorm2d, create_model
from attnorm.config import (
    MultistepConfig,
    OptimConfig,
    PolynomialConfig,
    ScheduleConfig,
    SGDConfig,
)
from attnorm.errors import UserError
from attnorm.training import optim
from attnorm.training.schedule import learning_rate
from tests.conftest import compose_config


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

    def forward(self, x: Tensor) -> Tensor:
        x = self.attentive(self.bn(self.conv(x)).relu())
        return self.fc(self.norm(x).relu().mean((2, 3)))


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


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_polynomial_schedule_is_timms(power: float) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    theirs = PolyLRScheduler(torch.optim.SGD([parameter], lr=0.7), 90, power, lr_min=0.01)
    schedule = PolynomialConfig(power=power, final_lr=0.01, warmup_epochs=1, warmup_start=0.1)
    for step in range(90):  # warmup of 10 steps, then 90
        rate = learning_rate(schedule, 0.7, 10 + step, 100, 10)
        assert rate == pytest.approx(theirs._get_lr(step)[0])


def test_the_rate_of_ffcv_goes_straight_up_and_down() -> None:
    config = compose_config("recipe=ffcv16")
    steps = 50
    for step in range(0, 16 * steps, 7):
        rate = learning_rate(config.schedule, 1.7, step, 16 * steps, steps)
        expected = np.interp(step / steps, [0, 2, 16], [1.7e-4, 1.7, 0])
        assert rate == pytest.approx(expected, rel=1e-6)


def test_biases_may_be_left_to_grow() -> None:
    model = _Small()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optim.parameter_groups(model, 0.02, norm_weight_decay=False, bias_weight_decay=False)
    filed = {g["name"]: sorted(names[id(p)] for p in g["params"]) for g in groups}  # type: ignore[attr-defined]
    assert filed["bias"] == ["attentive.attention.bias", "conv.bias", "fc.bias"]
    assert filed["weights"] == ["attentive.attention.weight", "conv.weight", "fc.weight"]
    assert "attentive.bias" in filed["norm"]
    decay = {g["name"]: g["weight_decay"] for g in groups}
    assert decay == {"weights": 0.02, "norm": 0.0, "bias": 0.0}


@pytest.mark.parametrize("name", ["lamb", "adamw", "muon"])
def test_an_optimizer_of_timm_updates_our_groups_and_is_stored(name: str) -> None:
    config = compose_config(f"optim={name}")
    torch.manual_seed(0)
    model = _Small()
    optimizer = optim.build_optimizer(model, config.optim)
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays["norm"] == decays["bias"] == 0
    assert decays["weights"] == config.optim.weight_decay > 0
    images = torch.randn(4, 3, 6, 6)
    for _ in range(2):
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    again = optim.build_optimizer(model, config.optim)
    again.load_state_dict(optimizer.state_dict())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(images).square().mean().backward()
    again.step()
    same = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert same == {"frozen.weight", "frozen.bias"}


def test_an_optimizer_that_timm_does_not_have_is_refused_with_what_is_close() -> None:
    config = compose_config("optim=timm", "optim.timm_name=adamq")
    with pytest.raises(UserError, match=r"optim\.timm_name=adamq .*adam"):
        optim.check_optimizer(config.optim, torch.device("cpu"))


LAYOUTS = (torch.contiguous_format, torch.channels_last)
SHAPES = ((8, 6, 3, 3), (8, 6, 1, 1), (8, 1, 3, 3), (8, 6), (8,))


def _laid_out(tensor: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    return tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor


@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS, repeat=3)), ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_is_the_same_wherever_weights_gradients_and_momenta_lie(
    layouts: tuple[torch.memory_format, ...], momentum: float
) -> None:
    """torch's operator goes by memory: other layouts than the weights' would be paired wrongly."""
    torch.manual_seed(0)
    of_weights, of_gradients, of_momenta = layouts
    start = [torch.randn(shape) for shape in SHAPES]
    expected = [nn.Parameter(weight.clone()) for weight in start]
    weights = [nn.Parameter(_laid_out(weight, of_weights).clone()) for weight in start]
    plain = torch.optim.SGD(
        expected, lr=0.1, momentum=momentum, nesterov=momentum > 0, weight_decay=0.1, fused=False
    )
    settings = {"lr": 0.1, "momentum": momentum, "nesterov": momentum > 0}
    own = optim.sgd([{"params": weights, "weight_decay": 0.1}], **settings, implementation="torch")
    for _ in range(3):
        for one, other in zip(expected, weights, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = _laid_out(one.grad, of_gradients).clone()
            state = own.state[other]
            if momentum:
                state["momentum_buffer"] = _laid_out(state["momentum_buffer"], of_momenta)
        plain.step()
        own.step()
    for one, other in zip(expected, weights, strict=True):
        torch.testing.assert_close(other, one)
        assert other.dim() < 4 or other.is_contiguous(memory_format=of_weights)


def test_a_step_of_weights_in_channels_last_copies_nothing() -> None:
    weight = nn.Parameter(torch.randn(8, 6, 3, 3).contiguous(memory_format=torch.channels_last))
    weight.grad = torch.ones_like(weight)
    own = optim.sgd([{"params": [weight]}], 0.1, 0.9, nesterov=True, implementation="torch")
    with torch.profiler.profile() as profile:
        own.step()
    names = {event.name for event in profile.events()}
    assert "aten::_fused_sgd_" in names
    assert not names & {"aten::copy_", "aten::clone"}
