"""Depthwise convolutions: the convolution's values and layouts, and no trap of speed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attnorm import create_model
from attnorm.models.cpu import depthwise
from attnorm.models.cpu.depthwise import DepthwiseConv2d, mend_depthwise_convolutions

KERNELS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 5, "padding": 2, "stride": (1, 2)},
    {"kernel_size": (3, 5), "padding": (2, 2), "stride": 2},
    {"kernel_size": 2, "padding": 0, "stride": 3},
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
SHAPES = [(2, 12, 2, 2), (3, 16, 1, 4), (4, 7, 6, 5)]


def outcome(layer: nn.Conv2d, x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(dy.to(y.dtype))
    assert x.grad is not None
    gradients = [parameter.grad for parameter in layer.parameters()]
    for gradient, parameter in zip(gradients, layer.parameters(), strict=True):
        assert gradient.dtype == parameter.dtype
        assert gradient.is_contiguous()
    return [y.detach(), x.grad, *gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", KERNELS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_the_convolutions(
    shape: tuple[int, ...],
    options: dict[str, Any],
    layout: torch.memory_format,
    bias: bool,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(shape[1], shape[1], groups=shape[1], bias=bias, **options)
    exact = copy.deepcopy(layer).double()
    mend_depthwise_convolutions(layer)
    assert type(layer) is DepthwiseConv2d
    x = torch.randn(shape).to(memory_format=layout)
    if any(x.shape[2 + i] + 2 * layer.padding[i] < layer.kernel_size[i] for i in (0, 1)):
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            layer(x)
        return
    dy = torch.randn(exact(x.double()).shape).to(memory_format=layout)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = outcome(layer, x, dy)
    assert found[0].dtype == dtype
    assert found[0].is_contiguous(memory_format=layout) or 1 in found[0].shape
    tolerance = 2e-6 if dtype == torch.float32 else 2.0**-6
    for one, other in zip(found, outcome(exact, x.double(), dy.double()), strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= tolerance * other.norm()


def test_second_derivatives_are_the_convolutions() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=4)
    results = []
    for one in (layer, mend_depthwise_convolutions(copy.deepcopy(layer))):
        x = torch.linspace(-1, 1, 2 * 4 * 2 * 2).view(2, 4, 2, 2).requires_grad_()
        (dx,) = torch.autograd.grad(one(x).pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), [x, *one.parameters()]))
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_what_else_there_is_runs_torchs_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    grouped = nn.Conv2d(4, 4, 3, groups=2)
    widening = nn.Conv2d(4, 8, 3, groups=4)
    dilated = nn.Conv2d(4, 4, 3, groups=4, dilation=2)
    mend_depthwise_convolutions(nn.ModuleList([grouped, widening, dilated]))
    assert {type(module) for module in (grouped, widening, dilated)} == {nn.Conv2d}

    monkeypatch.setattr(depthwise, "_Depthwise", None)  # calling it would fail
    layer = nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=4)
    plain, ours = copy.deepcopy(layer), mend_depthwise_convolutions(layer)
    small, large = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 3, 3)
    assert torch.equal(ours(large), plain(large)), "float32, not small"
    assert torch.equal(ours.eval()(small), plain(small)), "evaluation"
    ours.train()
    assert torch.equal(torch.compile(ours, backend="eager")(small), plain(small)), "compiled"


def test_the_depthwise_convolutions_of_a_network_and_no_others() -> None:
    model = create_model("mobilenetv2", "bn", num_classes=3)
    names = list(model.state_dict())
    mend_depthwise_convolutions(model)
    mended = [name for name, module in model.named_modules() if type(module) is DepthwiseConv2d]
    assert len(mended) == 17
    assert all(name.endswith("conv_dw") for name in mended)
    assert list(model.state_dict()) == names
    resnet = mend_depthwise_convolutions(create_model("resnet50", "bn", num_classes=3))
    assert not any(type(module) is DepthwiseConv2d for module in resnet.modules())


class ConvolutionGradients(TorchDispatchMode):
    """Records the gradients that torch's convolutions compute: (image, weights), and the stride."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, bool, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            of_image, of_weights, _ = args[-1]
            self.seen.append((of_image, of_weights, max(args[4])))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("side", "stride"), [(2, 1), (8, 2), (2, 2), (8, 1)])
def test_the_two_slow_gradients_are_not_torchs(side: int, stride: int, dtype: torch.dtype) -> None:
    """They take ten to hundreds of times as long as the forward pass."""
    layer = nn.Conv2d(6, 6, 3, padding=1, stride=stride, groups=6, bias=False)
    layer = mend_depthwise_convolutions(layer).to(memory_format=torch.channels_last)
    x = torch.randn(2, 6, side, side).to(dtype).to(memory_format=torch.channels_last)
    x.requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = layer(x)
    with ConvolutionGradients() as gradients:
        y.sum().backward()
    weights_of_small_images = [of_weights for _, of_weights, _ in gradients.seen if side < 3]
    strided_images = [
        of_image for of_image, _, step in gradients.seen if step > 1 and dtype == torch.bfloat16
    ]
    assert gradients.seen
    assert not any(weights_of_small_images + strided_images)
