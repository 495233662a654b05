"""AN's passes on the device against the plain ones in float64, on shapes of real networks."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from attnorm.norms.fused import passes_for
from attnorm.norms.passes import Activation, Passes, PlainPasses
from tests.gpu.report import Report, Setting

# C, H, K of distinct attentive sites of ResNet-50, DenseNet-161 and MobileNet-v2 at 224².
SITES = (
    *((64, 56, 10), (128, 28, 10), (256, 14, 20), (512, 7, 20)),
    *((192, 56, 10), (192, 7, 20)),
    *((32, 112, 5), (144, 28, 5), (960, 7, 10)),
)
# N, C, H, K, separate heads: odd C, one pixel, one instance, K = 1, a large K.
AWKWARD = ((3, 37, 9, 7, True), (17, 40, 1, 20, False), (1, 3, 40, 1, False), (5, 64, 7, 64, True))
LAYOUTS = (torch.contiguous_format, torch.channels_last)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}
ELEMENTS = int(2.1 * 2**31)


def run(setting: Setting, report: Report) -> None:
    # Memory that nobody has written holds NaN then, and shows in whatever reads it.
    torch.use_deterministic_algorithms(True, warn_only=True)
    report.figure("passes", type(passes_for(torch.ones(1, device=setting.device))).__name__)
    wanted = "TritonPasses" if setting.on_gpu else report.figures["passes"]
    report.require(report.figures["passes"] == wanted, f"the passes are not {wanted}")
    for number, case in enumerate(cases(setting.small)):
        # Large ones in the recipe's own format alone.
        large = case[0] > 5 and case[2] > 1
        dtypes = [torch.float16] if large else list(TOLERANCE)
        for dtype, layout, activation in product(dtypes, LAYOUTS, Activation):
            compare(case, dtype, layout, activation, setting.device, report)
        report.figure("cases", number + 1)
    torch.use_deterministic_algorithms(False)
    for layout in LAYOUTS:
        beyond_32_bits(setting, layout, report)


def cases(small: bool) -> list[tuple[int, int, int, int, bool]]:
    """N, C, H, K, separate heads."""
    if small:
        return [(2, 6, 5, 3, False), (3, 37, 3, 7, True)]
    few = [(n, *site, False) for n in (1, 5) for site in SITES]
    return [*AWKWARD, *few, (128, 64, 56, 10, False), (128, 512, 7, 20, False)]


def compare(
    case: tuple[int, int, int, int, bool],
    dtype: torch.dtype,
    layout: torch.memory_format,
    activation: Activation,
    device: torch.device,
    report: Report,
) -> None:
    """All results of one case; the largest relative error of each kind becomes a figure."""
    n, c, side, k, separate = case
    torch.manual_seed(0)
    rows = 2 * k if separate else k
    # The mean is much larger than the deviation.
    x = (torch.randn(n, c, side, side, device=device) + 20).to(dtype, memory_format=layout)
    small = [1 + 0.1 * torch.randn(k, c), 0.1 * torch.randn(k, c)]
    small += [torch.randn(rows, c) / (20 * c), torch.randn(rows)]
    small = [value.to(device) for value in small]
    dy = torch.randn(n, c, side, side, device=device).to(dtype, memory_format=layout)
    exact = [value.double() for value in small]
    if activation != Activation.NONE:  # on either side of its kinks it is right
        y = whole_pass(PlainPasses(), x.double(), dy.double(), exact, Activation.NONE)["y"]
        kink = (y.abs() < 1e-3) | ((y - 6).abs() < 1e-3)
        dy = torch.where(kink, 0, dy).to(dtype, memory_format=layout)
    expected = whole_pass(PlainPasses(), x.double(), dy.double(), exact, activation)
    found = whole_pass(passes_for(x), x, dy, small, activation)
    for name, value in found.items():
        wide = name in ("y", "dx")
        kind = f"{'activations' if wide else 'sums'}, {str(dtype).removeprefix('torch.')}"
        error = relative_error(value, expected[name])
        report.figures[kind] = max(report.figures.get(kind, 0.0), error)
        most = TOLERANCE[dtype] if wide else TOLERANCE[torch.float32]
        report.require(error <= most, f"{name} of {case}, {kind}, {layout}: error {error:.2g}")


def whole_pass(
    passes: Passes, x: Tensor, dy: Tensor, small: list[Tensor], activation: Activation
) -> dict[str, Tensor]:
    """Everything that forward and backward give."""
    weight, bias, head_weight, head_bias = small
    mixture, affine, centre, unbiased, rstd = passes.prepare(
        x, weight, bias, head_weight, head_bias, 1e-5
    )
    y = passes.apply(x, affine, centre, rstd, activation)
    found = passes.collect(dy, x, mixture, weight, bias, head_weight, centre, rstd, activation)
    gradients = {name: value.clone() for name, value in found._asdict().items()}
    dx = passes.gradient(
        dy, x, found.affine, centre, rstd, found.mean_grad, found.folded, activation
    )
    forward = {"mixture": mixture, "centre": centre, "unbiased": unbiased, "rstd": rstd}
    return {**gradients, **forward, "y": y, "dx": dx}


def beyond_32_bits(setting: Setting, layout: torch.memory_format, report: Report) -> None:
    """More elements than 32 bits can count: the last instance repeats the first one exactly."""
    shape = (64, 4, 4) if setting.small else (64, 56, 56)
    n = 3 if setting.small else -(-ELEMENTS // (shape[0] * shape[1] * shape[2]))
    dtype = torch.float16 if setting.on_gpu else torch.float32
    one = torch.randn(1, *shape, device=setting.device, dtype=dtype)
    one_dy = torch.randn_like(one)
    x, dy = (v.expand(n, -1, -1, -1).contiguous(memory_format=layout) for v in (one, one_dy))
    k, c = 4, shape[0]
    small = [torch.ones(k, c), torch.zeros(k, c), torch.randn(k, c) / c, torch.zeros(k)]
    passes, small = passes_for(x), [value.to(setting.device) for value in small]
    mixture, affine, centre, _, rstd = passes.prepare(x, *small, 1e-5)
    y = passes.apply(x, affine, centre, rstd, False)
    report.require(bool((y[-1] == y[0]).all()), f"y beyond 2³² elements, {layout}")
    del y
    found = passes.collect(dy, x, mixture, small[0], small[1], small[2], centre, rstd, False)
    dx = passes.gradient(dy, x, found.affine, centre, rstd, found.mean_grad, found.folded, False)
    report.require(bool((dx[-1] == dx[0]).all()), f"dx beyond 2³² elements, {layout}")
    exact_x, exact_dy = (value.double().contiguous() for value in (one, one_dy))
    exact = whole_pass(PlainPasses(), exact_x, exact_dy, [value.double() for value in small], False)
    report.require(
        relative_error(dx[-1:], exact["dx"]) <= 2 * TOLERANCE[dtype], f"dx of one, {layout}"
    )
    report.figure("most elements", x.numel())


def relative_error(value: Tensor, expected: Tensor) -> float:
    """By norms; NaN counts as infinite."""
    error = float((value.double() - expected).norm() / expected.norm().clamp(min=1e-12))
    return error if error == error else float("inf")
