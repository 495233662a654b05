"""The training step in two calls of C: bit for bit the operator's, where it can be made."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from attnorm.norms import AttentiveNorm2d, attentive, fused, native
from attnorm.norms.batch import BatchNorm2d
from attnorm.norms.passes import Activation
from attnorm.norms.training_step import training_step

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler")


def step(layer: AttentiveNorm2d, x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    assert y.dtype == x.dtype
    y.backward(dy)
    found = [y.detach(), x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]
    assert all(tensor is not None for tensor in found)
    return [tensor for tensor in found if tensor is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 96, 5, 5), (3, 19, 1, 1), (64, 40, 1, 1), (2, 16, 7, 7)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("separate", "activation"), [(False, None), (True, "relu"), (False, "relu6")]
)
def test_every_number_is_the_operators(
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    layout: torch.memory_format,
    separate: bool,
    activation: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    one = AttentiveNorm2d(shape[1], 7, separate_attention=separate, activation=activation)
    x, dy = (torch.randn(shape).to(dtype).to(memory_format=layout) for _ in range(2))
    other = copy.deepcopy(one)
    calls = []

    def counted(*arguments: object, **options: object) -> Tensor | None:
        calls.append(training_step(*arguments, **options))
        return calls[-1]

    monkeypatch.setattr(attentive, "training_step", counted)
    in_two_calls = step(one, x, dy)
    assert calls[0] is not None, "this is what is tested"
    monkeypatch.setattr(attentive, "training_step", lambda *_, **__: None)
    by_operator = step(other, x, dy)
    statistics = len(list(one.buffers()))
    for found, expected in zip(in_two_calls[:-statistics], by_operator[:-statistics], strict=True):
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride() or 1 in shape[2:]
    for found, expected in zip(one.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_a_second_derivative_and_an_input_without_one() -> None:
    torch.manual_seed(0)
    layer = AttentiveNorm2d(6, 3)
    x = torch.randn(4, 6, 3, 3, requires_grad=True)
    layer(x).square().sum().backward(create_graph=True)
    assert x.grad is not None
    first = x.grad
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second.isfinite().all()
    assert second.abs().sum() > 0
    layer.zero_grad()
    layer(x.detach()).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_what_it_cannot_do_is_left_to_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = AttentiveNorm2d(8, 3)
    parameters = (layer.weight, layer.bias, *layer.attention.parameters())
    options = native.StepOptions(None, None, 0.1, 1e-5, Activation.NONE)

    def done(x: Tensor, parameters: tuple[Tensor, ...]) -> bool:
        return training_step(x, parameters, options) is not None  # type: ignore[arg-type]

    x = torch.randn(2, 8, 3, 3)
    assert done(x, parameters)
    assert not done(x.double(), parameters)
    assert not done(x[:0], parameters)
    assert not done(x[:, :4], parameters), "the operator says what does not fit"
    assert not done(x, tuple(parameter.bfloat16() for parameter in parameters))
    assert not done(x.to("meta"), parameters)
    with pytest.raises(ValueError, match="expected an input of"):
        layer(x[:, :4])
    monkeypatch.setattr(fused, "KERNELS", "plain")
    assert not done(x, parameters)


@pytest.mark.parametrize("kernels", ["", "plain"])
@pytest.mark.parametrize("kind", [AttentiveNorm2d, BatchNorm2d])
def test_every_batch_of_training_is_counted_once(
    kind: type[nn.Module], kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "KERNELS", kernels)
    layer = kind(8, 3) if kind is AttentiveNorm2d else kind(8)
    x = torch.randn(2, 8, 3, 3)
    for _ in range(3):
        layer(x)
    assert layer.num_batches_tracked == 3
    layer.eval()(x)
    assert layer.num_batches_tracked == 3
    layer.train().num_batches_tracked = torch.tensor(3, dtype=torch.int32)
    layer(x)
    assert layer.num_batches_tracked == 4, "what the passes in C cannot count in"


def test_a_strided_view_is_copied_once_and_has_its_gradient() -> None:
    torch.manual_seed(0)
    layer = AttentiveNorm2d(8, 3)
    whole = torch.randn(2, 16, 4, 4, requires_grad=True)
    layer(whole[:, ::2]).square().sum().backward()
    dense = whole.detach()[:, ::2].contiguous().requires_grad_()
    layer(dense).square().sum().backward()
    assert whole.grad is not None
    torch.testing.assert_close(whole.grad[:, ::2], dense.grad)
    assert not whole.grad[:, 1::2].any()
