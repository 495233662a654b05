"""Convolutions as matrix products: the convolution's values and layouts, and no trap of speed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnorm import create_model
from attnorm.models.cpu import products
from attnorm.models.cpu.products import (
    ProductConv2d,
    convolutions_as_products,
    product_dtypes,
)

pytestmark = pytest.mark.skipif(
    not product_dtypes(), reason="torch has no oneDNN here, or a CPU without AVX2"
)
LAST = torch.channels_last
KERNELS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 1, "stride": (1, 2), "padding": (1, 0)},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "stride": (2, 1), "padding": (0, 2)},
    {"kernel_size": (1, 3), "padding": (0, 1)},
    {"kernel_size": (4, 2), "stride": 3, "padding": 3},
]
SHAPES = [(2, 5, 7, 6), (3, 64, 2, 2), (1, 17, 1, 1), (4, 1, 4, 4)]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products also where there are few weights, as in these tests."""
    monkeypatch.setattr(products, "WEIGHTS_PER_PIXEL", 1e-9)


def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The factors of all products from now on."""
    seen, run = [], products._product

    def counted(rows: Tensor, weight: Tensor, *others: Any) -> Tensor:
        seen.append((rows, weight))
        return run(rows, weight, *others)

    monkeypatch.setattr(products, "_product", counted)
    return seen


def outcome(layer: nn.Conv2d, x: Tensor, dy: Tensor | None = None) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(torch.ones_like(y) if dy is None else dy.to(y.dtype))
    assert x.grad is not None
    gradients = [parameter.grad for parameter in layer.parameters()]
    for gradient, parameter in zip(gradients, layer.parameters(), strict=True):
        assert gradient.dtype == parameter.dtype
        # DDP warns, and copies, where they differ.
        assert gradient.stride() == parameter.stride() or 1 in parameter.shape
    return (y.detach(), x.grad, *gradients)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", KERNELS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_the_convolutions(
    shape: tuple[int, ...],
    options: dict[str, Any],
    bias: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(shape[1], 9, bias=bias, **options).to(memory_format=LAST)
    exact = copy.deepcopy(layer).double()
    x = torch.randn(shape).to(memory_format=LAST)
    ours = convolutions_as_products(copy.deepcopy(layer))
    if any(products._extent(layer, x, axis) < 1 for axis in (0, 1)):
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            ours(x)
        return
    expected = exact(x.double())
    dy = torch.randn(expected.shape).to(memory_format=LAST)
    seen = calls(monkeypatch)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = outcome(ours, x, dy)
    assert bool(seen) == (dtype in product_dtypes())
    assert found[0].dtype == dtype
    assert found[0].is_contiguous(memory_format=LAST)
    tolerance = 2e-6 if dtype == torch.float32 else 2.0**-6
    for one, other in zip(found, outcome(exact, x.double(), dy.double()), strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.usefixtures("always")
def test_second_derivatives_are_the_convolutions() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, padding=1, stride=2).to(memory_format=LAST)
    results = []
    for one in (layer, convolutions_as_products(copy.deepcopy(layer))):
        x = torch.linspace(-1, 1, 2 * 4 * 5 * 5).view(2, 4, 5, 5).to(memory_format=LAST)
        x.requires_grad_()
        (dx,) = torch.autograd.grad(one(x).pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), [x, *one.parameters()]))
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("always")
def test_an_activation_in_place_may_follow() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 1).to(memory_format=LAST)
    x, results = torch.randn(2, 4, 3, 3).to(memory_format=LAST), []
    for one in (layer, convolutions_as_products(copy.deepcopy(layer))):
        y = nn.functional.relu(one(x), inplace=True)
        y.sum().backward()
        results.append((y, one.weight.grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.usefixtures("always")
def test_what_else_there_is_runs_torchs_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    grouped = nn.Conv2d(4, 4, 1, groups=2)
    dilated = nn.Conv2d(4, 4, 3, dilation=2)
    mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    named = nn.Conv2d(4, 4, 3, padding="same")
    convolutions_as_products(nn.ModuleList([grouped, dilated, mirrored, named]))
    assert {type(c) for c in (grouped, dilated, mirrored, named)} == {nn.Conv2d}

    layer = nn.Conv2d(4, 4, 1).to(memory_format=LAST)
    plain, ours = copy.deepcopy(layer), convolutions_as_products(layer)
    seen, x = calls(monkeypatch), torch.randn(2, 4, 3, 3)
    assert torch.equal(ours(x), plain(x)), "contiguous"
    assert torch.equal(ours.eval()(x), plain(x)), "evaluation"
    ours.train()
    x = x.to(memory_format=LAST)
    assert torch.equal(torch.compile(ours, backend="eager")(x), plain(x)), "compiled"
    doubled = x.double()
    assert torch.equal(ours.double()(doubled), plain.double()(doubled)), "float64"
    assert seen == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_a_network_is_close_to_float64(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    plain = create_model("resnet50", "an", num_classes=7).to(memory_format=LAST).train()
    ours = convolutions_as_products(copy.deepcopy(plain))
    assert sum(type(module) is ProductConv2d for module in ours.modules()) == 53
    assert list(ours.state_dict()) == list(plain.state_dict())
    x, seen = torch.randn(4, 3, 64, 64).to(memory_format=LAST), calls(monkeypatch)
    distances = []
    gradients = {}
    for name, model in (("exact", copy.deepcopy(plain).double()), ("plain", plain), ("ours", ours)):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32 and name != "exact"):
            loss = model(x.to(next(model.parameters()).dtype)).square().mean()
        loss.backward()
        gradients[name] = torch.cat([p.grad.double().flatten() for p in model.parameters()])
    # Those of the layers with small images; in bfloat16 torch's convolutions without AVX512.
    assert len(seen) > 60 if dtype in product_dtypes() else not seen
    for name in ("plain", "ours"):
        distances.append((gradients[name] - gradients["exact"]).norm())
    assert distances[1] <= 1.5 * distances[0], "no further away than torch's convolutions"


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("dtype", product_dtypes())
@pytest.mark.parametrize("options", KERNELS, ids=str)
def test_factors_are_dense(
    options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For rows or columns with gaps between them oneDNN takes a thousand times as long."""
    layer = convolutions_as_products(nn.Conv2d(4, 6, bias=False, **options).to(memory_format=LAST))
    seen, x = calls(monkeypatch), torch.randn(2, 4, 7, 6).to(memory_format=LAST)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        outcome(layer, x)
    assert seen
    for factor in (factor for factors in seen for factor in factors):
        assert factor.is_contiguous() or factor.t().is_contiguous()
