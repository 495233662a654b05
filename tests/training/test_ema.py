"""The moving average is the recurrence that it is named after."""

from __future__ import annotations

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attnorm.training.ema import WeightAverage


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def test_it_equals_torchs_own_to_the_bit_and_copies_what_is_counted() -> None:
    model = _network()
    average = WeightAverage(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(4):
        model(torch.randn(5, 3, 4, 4))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update()
        theirs.update_parameters(model)
    expected = theirs.module.state_dict()
    for name, value in average.model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value == 4
        else:
            assert torch.equal(value, expected[name]), name
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_a_stored_average_goes_on_where_it_was() -> None:
    model = _network()
    average, other = WeightAverage(model, 0.5), WeightAverage(_network(), 0.5)
    average.update()
    other.load_state_dict(average.state_dict())
    assert other.steps == 1
    other.update()  # not a copy of the other network: the second step
    mixed = other.model[0].weight
    torch.testing.assert_close(mixed, model[0].weight)
    with torch.no_grad():
        model[0].weight.zero_()
    average.update()
    assert average.model[0].weight.abs().sum() == pytest.approx(mixed.abs().sum().item() / 2)


def test_every_few_steps_with_a_decay_that_warms_up_as_timms_does() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.75, every=3, warmup=True)
    theirs = ModelEmaV3(model, decay=0.75, use_warmup=True)
    with torch.no_grad():
        model.weight.fill_(0.0)
        values = [average.model.weight.item() for _ in range(1)]
        expected = 0.0
        for step in range(13):
            model.weight.fill_(float(step))
            average.update()
            if step == 0:
                expected = 0.0
            elif step % 3 == 0:
                decay = average.decay_of(step // 3)
                # timm counts from 1, and copies until its step 1.
                assert decay == pytest.approx(theirs.get_decay(step // 3 + 1))
                expected = decay * expected + (1 - decay) * step
            values.append(average.model.weight.item())
            assert values[-1] == pytest.approx(expected, abs=1e-6), step
    assert average.decay_of(10**6) == 0.75
