"""λ as it is recorded from real layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attnorm.norms import AttentiveNorm2d
from attnorm.norms.observe import attentive_layers, record_mixtures


@pytest.mark.parametrize("attention", ["sigmoid", "conv_relu", "released"])
@pytest.mark.parametrize("training", [False, True])
def test_recorded_weights_give_the_layers_output(attention: str, training: bool) -> None:
    torch.manual_seed(0)
    layer = AttentiveNorm2d(6, num_components=4, attention=attention).train(training)
    model = nn.Sequential(layer)
    x = torch.randn(3, 6, 5, 5)
    batches = layer.num_batches_tracked
    assert batches is not None
    before = int(batches)
    with record_mixtures(model) as recorded:
        y = model(x)
    weights = recorded["0"]
    assert weights.shape == (3, 4)
    mean, var = (x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)) if training else (0, 1)
    normalized = x.sub(torch.as_tensor(mean).view(-1, 1, 1)) if training else x
    normalized = normalized / torch.as_tensor(var + layer.eps).sqrt().reshape(-1, 1, 1)
    gain, offset = weights @ layer.weight, weights @ layer.bias
    expected = gain[..., None, None] * normalized + offset[..., None, None]
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert int(batches) - before == int(training), "looking is no second training step"
    hooks = (layer._forward_hooks, layer.attention._forward_hooks)
    assert not any(hooks), "hooks are taken away"


def test_every_attentive_layer_is_found_by_its_name_and_nothing_else() -> None:
    separate = AttentiveNorm2d(4, num_components=3, separate_attention=True)
    model = nn.ModuleDict({"stem": nn.BatchNorm2d(4), "stage": nn.Sequential(separate)})
    assert attentive_layers(model) == {"stage.0": separate}
    with record_mixtures(model) as recorded:
        assert recorded == {}, "nothing ran yet"
        separate(torch.randn(2, 4, 3, 3))
        assert recorded["stage.0"].shape == (2, 6), "those of γ, then those of β"
