"""``python -m benchmarks layer``: Attentive against Batch Normalization, layer by layer.

One layer at a time, at the shapes of real networks, in training, on random activations: forward,
forward and backward, and what is kept in between. Contestants take turns.

On a GPU the times are those of the kernels, on inputs that take turns too: what Python needs to
launch them does not count, nor does what is left in the cache. On a CPU it is the clock's time, in
a process that does what a network's does: it keeps freed memory, as the trainer does, and between
two calls a convolution of the layer's width runs, forward and backward, which is not counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attnorm.models import create_model
from attnorm.norms import AttentiveNorm2d
from attnorm.norms.batch import BatchNorm2d
from attnorm.run.allocator import keep_freed_memory
from attnorm.training.backends import set_backends
from attnorm.training.precision import Precision
from benchmarks.device_time import device_seconds, in_rotation, rotated
from benchmarks.measure import PRECISIONS, default_device, seconds_between, take_turns

ARCHITECTURES = ("resnet50", "resnet101", "densenet161", "mobilenetv2")
Pair = tuple[Tensor, Tensor]  # x, dy
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Figure3(nn.BatchNorm2d):
    """Attentive Normalization as the paper's Figure 3 writes it."""

    def __init__(self, num_features: int, num_components: int) -> None:
        super().__init__(num_features, affine=False)
        self.gamma = nn.Parameter(torch.randn(num_components, num_features) * 0.1 + 1)
        self.beta = nn.Parameter(torch.randn(num_components, num_features) * 0.1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(num_features, num_components)

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        pooled = self.avgpool(x).flatten(1).to(self.gamma.dtype)
        mixture = torch.sigmoid(self.fc(pooled))
        gamma = (mixture @ self.gamma)[:, :, None, None].expand(output.shape)
        beta = (mixture @ self.beta)[:, :, None, None].expand(output.shape)
        return (gamma * output + beta).to(x.dtype)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks layer``."""
    gpu = torch.cuda.is_available()
    parser.add_argument("--arch", nargs="+", default=["resnet50"], choices=ARCHITECTURES)
    parser.add_argument("--batch-size", type=int, default=128 if gpu else 32)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--dtype", default="fp16" if gpu else "fp32", choices=PRECISIONS)
    parser.add_argument("--layout", nargs="+", default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument("--repeats", type=int, default=15, help="blocks of each layer, in turns")
    parser.add_argument(
        "--compiled", action="store_true", help="also Figure 3 under torch.compile (slow to start)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Tables of times and ratios, one row per shape and layout."""
    set_backends(args.dtype)
    keep_freed_memory()
    rows = []
    for arch in args.arch:
        for channels, size, components, layers in attentive_shapes(arch, args.image_size):
            for layout in args.layout:
                shape = (args.batch_size, channels, size, size)
                measured = _measure(shape, components, layout, args)
                rows.append({"arch": arch, "shape": _name(shape), "layers": layers, **measured})
    return {"each attentive layer of the architecture, times over nn.BatchNorm2d's": rows}


def attentive_shapes(arch: str, image_size: int) -> list[tuple[int, int, int, int]]:
    """Channels, height, K and number of layers of each distinct attentive site of a network."""
    model = create_model(arch, norm="an", num_classes=10).eval()
    shapes: list[tuple[int, int, int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, AttentiveNorm2d)
        _, channels, height, _ = inputs[0].shape
        shapes.append((channels, height, module.num_components))

    for module in model.modules():
        if isinstance(module, AttentiveNorm2d):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, 3, image_size, image_size))
    return [(*shape, shapes.count(shape)) for shape in dict.fromkeys(shapes)]


def _measure(
    shape: tuple[int, int, int, int], components: int, layout: str, args: argparse.Namespace
) -> dict[str, Any]:
    device, channels = default_device(), shape[1]
    modules: dict[str, nn.Module] = {
        "BN": nn.BatchNorm2d(channels),
        "AN": AttentiveNorm2d(channels, components),
        "BN + ReLU": nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True)),
        "BN with ReLU": BatchNorm2d(channels, activation="relu"),
        "AN with ReLU": AttentiveNorm2d(channels, components, activation="relu"),
        "Figure 3": Figure3(channels, components),
    }
    if args.compiled:
        compiled = Figure3(channels, components)
        compiled.compile()
        modules["Figure 3 compiled"] = compiled
    dtype = Precision(args.dtype, device.type).input_dtype

    def made() -> Pair:
        x = torch.randn(shape, dtype=dtype, device=device)
        x = x.to(memory_format=LAYOUTS[layout]).requires_grad_()
        return x, torch.randn_like(x)

    pairs = rotated(made, device)
    following, (x, dy) = in_rotation(pairs), pairs[0]
    modules = {name: module.to(device) for name, module in modules.items()}
    convolution = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)
    convolution = convolution.to(memory_format=LAYOUTS[layout])
    between = _forward_backward(convolution, following)
    on_gpu = device.type == "cuda"
    clock = device_seconds if on_gpu else seconds_between(between)
    calls = None if on_gpu else 5
    forward, both = (
        take_turns({n: call(m, following) for n, m in modules.items()}, args.repeats, clock, calls)
        for call in (_forward, _forward_backward)
    )
    row: dict[str, Any] = {
        "layout": layout,
        "BN forward, ms": forward.median("BN") * 1e3,
        "BN both, ms": both.median("BN") * 1e3,
        "AN forward": forward.ratio("AN", "BN"),
        "AN both": both.spread("AN", "BN"),
        "Figure 3 both": both.ratio("Figure 3", "BN"),
    }
    if args.compiled:
        row["Figure 3 compiled both"] = both.ratio("Figure 3 compiled", "BN")
    row["AN ÷ Figure 3"] = both.ratio("AN", "Figure 3")
    for name in ("AN with ReLU", "BN with ReLU"):  # in one operator, as in training on a CPU
        row[f"{name} ÷ BN + ReLU"] = both.ratio(name, "BN + ReLU")
    row["AN kept"] = _kept(modules["AN"], x) / _kept(modules["BN"], x)
    row["Figure 3 kept"] = _kept(modules["Figure 3"], x) / _kept(modules["BN"], x)
    if device.type == "cuda":
        row["AN peak"] = _peak(modules["AN"], x, dy) / _peak(modules["BN"], x, dy)
    return row


def _forward(module: nn.Module, following: Callable[[], Pair]) -> Callable[[], object]:
    return lambda: module(following()[0])


def _forward_backward(module: nn.Module, following: Callable[[], Pair]) -> Callable[[], object]:
    parameters = list(module.parameters())

    def call() -> object:
        x, dy = following()
        return torch.autograd.grad(module(x), [x, *parameters], dy)

    return call


def _kept(module: nn.Module, x: Tensor) -> int:
    """Bytes that forward keeps for backward, parameters aside."""
    parameters = {parameter.data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sum(kept.values())


def _peak(module: nn.Module, x: Tensor, dy: Tensor) -> int:
    """Bytes on the GPU, at most, above what the arguments take."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.grad(module(x), [x, *module.parameters()], dy)
    return torch.cuda.max_memory_allocated() - before


def _name(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
