"""Batch normalization by the compiled passes: torch's values, its state, its corner cases."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from attnorm.norms import fused, native
from attnorm.norms.batch import BatchNorm2d

LAYOUTS = [torch.contiguous_format, torch.channels_last]
FOLLOWERS = {None: nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6}
# Instances that are taken together, that are not, a channel too many for a block, and one pixel.
SHAPES = [
    (8, 70, 7, 7),
    (2, 4100, 6, 6),
    (3, 16, 9, 5),
    (1, 130, 4, 4),
    (64, 40, 2, 2),
    (16, 24, 1, 1),
]


def layers(channels: int, activation: str | None) -> tuple[BatchNorm2d, nn.Module]:
    """Ours, and torch's in float64, with the same parameters."""
    ours = BatchNorm2d(channels, activation=activation)
    with torch.no_grad():
        ours.weight.add_(torch.randn(channels)).mul_(3)
        ours.bias.add_(2)
    theirs = nn.BatchNorm2d(channels)
    theirs.load_state_dict(ours.state_dict())
    return ours, nn.Sequential(theirs, FOLLOWERS[activation]()).double()


def outcome(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    assert y.dtype == x.dtype
    assert y.stride() == x.stride() or 1 in x.shape[2:]
    y.backward(dy)
    assert x.grad is not None
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    return [y.detach(), x.grad, *gradients, *layer.buffers()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", FOLLOWERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_gradients_and_running_statistics_are_torchs(
    shape: tuple[int, ...], layout: torch.memory_format, activation: str | None, dtype: torch.dtype
) -> None:
    if native.load(dtype) is None:
        pytest.skip("no C compiler here")
    torch.manual_seed(0)
    ours, theirs = layers(shape[1], activation)
    x = (torch.randn(shape) * 2 + 5).to(dtype).to(memory_format=layout)
    dy = torch.randn(shape).to(dtype).to(memory_format=layout)
    expected = outcome(theirs, x.double(), dy.double())
    found = outcome(ours, x, dy)
    assert ours.num_batches_tracked == 1
    for which, (one, exact) in enumerate(zip(found, expected, strict=True)):
        # y and dx are rounded to 8 bits; a sum takes what falls on the other side of a kink.
        rounded = 2.0**-7 if dtype == torch.bfloat16 and which < 2 else 2e-6
        assert (one.double() - exact).abs().max() <= rounded * exact.abs().max(), which


def assert_no_sum_depends_on_threads(layout: torch.memory_format) -> None:
    before, results = torch.get_num_threads(), []
    ours, _ = layers(200, "relu6")
    x, dy = (torch.randn(16, 200, 3, 3).to(memory_format=layout) for _ in range(2))
    try:
        for threads in (1, 2, 3, 5, 16):
            torch.set_num_threads(threads)
            results.append(outcome(copy.deepcopy(ours), x, dy))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_sum_depends_on_the_number_of_threads(layout: torch.memory_format) -> None:
    if native.load() is None:
        pytest.skip("no C compiler here")
    assert_no_sum_depends_on_threads(layout)


def uses_the_passes(layer: nn.Module, x: Tensor) -> bool:
    y = layer(x.clone().requires_grad_())
    return type(y.grad_fn).__name__ == "_BatchTrainingStepBackward"


def test_what_the_passes_cannot_do_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.load() is None:
        pytest.skip("no C compiler here")
    x = torch.randn(2, 8, 3, 3)
    layer = BatchNorm2d(8, activation="relu")
    assert uses_the_passes(layer, x)
    assert not uses_the_passes(layer.eval(), x)
    assert not uses_the_passes(BatchNorm2d(8, momentum=None), x)
    assert not uses_the_passes(BatchNorm2d(8).double(), x.double())
    assert BatchNorm2d(8, device="meta")(x.to("meta")).shape == x.shape
    monkeypatch.setattr(fused, "KERNELS", "plain")
    layer, reference = layers(8, "relu6")
    assert not uses_the_passes(layer, x)
    torch.testing.assert_close(layer(x), reference(x.double()).float())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BatchNorm2d(8)(torch.randn(1, 8, 1, 1))
    with pytest.raises(RuntimeError, match="4 elements"):
        BatchNorm2d(8)(x[:, :4])


def test_a_second_derivative() -> None:
    torch.manual_seed(0)
    ours, theirs = layers(6, "relu")
    x = torch.randn(4, 6, 3, 3)
    found = []
    for layer, given in ((ours, x), (theirs, x.double())):
        given = given.clone().requires_grad_()
        (first,) = torch.autograd.grad(layer(given).square().sum(), given, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), given)[0])
    torch.testing.assert_close(found[0].double(), found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_activation_hides_what_is_not_a_number(
    layout: torch.memory_format, activation: str
) -> None:
    x = torch.randn(2, 16, 4, 4).to(memory_format=layout)
    x[0, 3, 0, 0] = float("nan")
    assert BatchNorm2d(16, activation=activation)(x)[:, 3].isnan().all()


def test_it_compiles_in_one_graph() -> None:
    torch.manual_seed(0)
    layer = BatchNorm2d(8, activation="relu6")
    x = torch.randn(2, 8, 3, 3)
    expected = copy.deepcopy(layer)(x)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
