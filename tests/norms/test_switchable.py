"""SwitchNorm2d against its definition, written out statistic by statistic in float64."""

import copy

import pytest
import torch
from torch import Tensor

from attnorm.norms import SwitchNorm2d


def definition(x: Tensor, layer: SwitchNorm2d, batch: tuple[Tensor, Tensor] | None) -> Tensor:
    """Luo et al., equations 2-5; the instance variance is unbiased, as in their code."""
    mean_in, var_in = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=True)
    second = var_in + mean_in**2
    mean_ln = mean_in.mean(1, keepdim=True)
    var_ln = second.mean(1, keepdim=True) - mean_ln**2
    means, variances = [mean_in, mean_ln], [var_in, var_ln]
    if layer.using_bn:
        if batch is None:
            mean_bn = mean_in.mean(0, keepdim=True)
            batch = mean_bn, second.mean(0, keepdim=True) - mean_bn**2
        means.append(batch[0].view(1, -1, 1, 1))
        variances.append(batch[1].view(1, -1, 1, 1))
    mean_shares, var_shares = layer.mean_weight.softmax(0), layer.var_weight.softmax(0)
    mean = sum(share * m for share, m in zip(mean_shares, means, strict=True))
    var = sum(share * v for share, v in zip(var_shares, variances, strict=True))
    normalized = (x - mean) / (var + layer.eps).sqrt()
    return normalized * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)


def random_layer(using_bn: bool, channels: int = 5) -> SwitchNorm2d:
    layer = SwitchNorm2d(channels, using_bn=using_bn).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def image(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype) * 2 + 3


@pytest.mark.parametrize("using_bn", [True, False])
def test_training_output_and_all_gradients_follow_the_definition(using_bn: bool) -> None:
    torch.manual_seed(0)
    layer = random_layer(using_bn)
    x = image(3, 5, 4, 6).requires_grad_()
    gradient = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    inputs = [x, *layer.parameters()]
    expected = definition(x, layer, None)
    wanted = torch.autograd.grad(expected, inputs, gradient)
    y = layer(x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    for got, want in zip(torch.autograd.grad(y, inputs, gradient), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_evaluation_uses_the_moving_average_of_the_batch_statistics() -> None:
    torch.manual_seed(0)
    layer = random_layer(True)
    batches = [image(4, 5, 3, 3) for _ in range(3)]
    mean, var = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    for x in batches:
        layer(x)
        instance_mean, instance_var = x.mean((2, 3)), x.var((2, 3))
        batch_mean = instance_mean.mean(0)
        batch_var = (instance_var + instance_mean**2).mean(0) - batch_mean**2
        mean, var = 0.9 * mean + 0.1 * batch_mean, 0.9 * var + 0.1 * batch_var
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, var)
    layer.eval()
    x = image(1, 5, 3, 3)
    torch.testing.assert_close(layer(x), definition(x, layer, (mean, var)))
    torch.testing.assert_close(layer.running_mean, mean)


def test_momentum_none_averages_all_batches_equally() -> None:
    layer = SwitchNorm2d(3, momentum=None)
    batches = [image(2, 3, 4, 4, dtype=torch.float32) for _ in range(4)]
    for x in batches:
        layer(x)
    means = torch.stack([x.mean((0, 2, 3)) for x in batches])
    torch.testing.assert_close(layer.running_mean, means.mean(0))


def test_without_bn_there_is_nothing_to_track_and_evaluation_equals_training() -> None:
    layer = random_layer(False)
    assert set(layer.state_dict()) == {"weight", "bias", "mean_weight", "var_weight"}
    x = image(2, 5, 4, 4)
    torch.testing.assert_close(layer.eval()(x), layer.train()(x))


@pytest.mark.parametrize("shape", [(2, 8, 1, 1), (1, 8, 1, 1), (1, 3, 2, 1)])
def test_small_maps_give_finite_values_and_gradients(shape: tuple[int, ...]) -> None:
    layer = SwitchNorm2d(shape[1])
    x = image(*shape, dtype=torch.float32).requires_grad_()
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert layer.eval()(x).isfinite().all()


def test_a_large_mean_does_not_cancel_the_variance() -> None:
    torch.manual_seed(0)
    layer = random_layer(True, channels=4)
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64) + 1000
    expected = definition(x, layer, None)
    single = copy.deepcopy(layer).float()(x.float())
    torch.testing.assert_close(single.double(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradient_keep_the_memory_format(memory_format: torch.memory_format) -> None:
    layer = SwitchNorm2d(6)
    x = torch.randn(2, 6, 5, 7).to(memory_format=memory_format).requires_grad_()
    y = layer(x)
    assert y.is_contiguous(memory_format=memory_format)
    (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert gradient.is_contiguous(memory_format=memory_format)


def test_autocast_keeps_statistics_in_float32_and_the_dtype_of_the_input() -> None:
    torch.manual_seed(0)
    layer = random_layer(True).float()
    x = image(4, 5, 6, 6, dtype=torch.float32).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    reference = copy.deepcopy(layer).double()
    torch.testing.assert_close(
        y.double(), definition(x.double(), reference, None), rtol=8e-3, atol=8e-3
    )
    assert layer.running_mean is not None
    assert layer.running_mean.dtype == torch.float32
    batch_mean = x.double().mean((0, 2, 3))
    torch.testing.assert_close(layer.running_mean.double(), 0.1 * batch_mean, rtol=1e-5, atol=1e-6)


def test_copies_and_state_dicts_reproduce_the_layer() -> None:
    layer = random_layer(True)
    layer(image(2, 5, 4, 4))
    fresh = SwitchNorm2d(5).double()
    fresh.load_state_dict(layer.state_dict())
    x = image(2, 5, 4, 4)
    expected = layer.eval()(x)
    assert torch.equal(fresh.eval()(x), expected)
    assert torch.equal(copy.deepcopy(layer)(x), expected)


def test_it_compiles_without_a_graph_break() -> None:
    layer = SwitchNorm2d(4)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(compiled(x), layer(x))


def test_input_that_is_no_image_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="N, C, H, W"):
        SwitchNorm2d(4)(torch.randn(2, 4))
