"""The Triton kernels: their arithmetic in the interpreter, and that they compile for a GPU."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from attnorm.norms import AttentiveNorm2d, fused
from attnorm.norms.passes import Activation, Passes, PlainPasses
from attnorm.norms.triton_passes import TritonPasses
from tests.norms.attentive_oracle import relative_error

triton = pytest.importorskip("triton")

# N, C, H, W, K, separate heads: C = 24, ragged blocks, one pixel and more instances than a block,
# one instance with more pixels than a block.
CASES = [
    (2, 24, 5, 7, 5, False),
    (3, 35, 13, 11, 9, True),
    (33, 34, 1, 1, 2, False),
    (1, 3, 40, 70, 20, False),
]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def combinations() -> list[Any]:
    """All of case, activation, dtype and layout; the fast ones have every pair of two values."""
    found = []
    numbers = [range(len(values)) for values in (CASES, Activation, DTYPES, LAYOUTS)]
    for case, activation, dtype, layout in itertools.product(*numbers):
        fast = dtype == (case + activation) % 3 and layout == (case // 2 + activation) % 2
        names = list(Activation)[activation], list(DTYPES)[dtype], list(LAYOUTS)[layout]
        marks = () if fast else (pytest.mark.slow,)
        name = "-".join((str(CASES[case]), names[0].name, *names[1:]))
        found.append(pytest.param(CASES[case], *names, marks=marks, id=name))
    return found


@pytest.fixture(scope="module")
def device() -> str:
    """A GPU where there is one; the interpreter takes CPU tensors."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    pytest.skip("run by test_arithmetic_in_the_interpreter")


@pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="the arithmetic tests run in this process",
)
@pytest.mark.parametrize("part", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_arithmetic_in_the_interpreter(part: str) -> None:
    """Triton decides when it is imported whether it interprets, so in a process of its own."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        [*command, "-m", part, "-k", "passes_agree or whole_operator"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.parametrize(("case", "activation", "dtype", "layout"), combinations())
def test_passes_agree_with_float64(
    case: tuple[int, int, int, int, int, bool],
    activation: Activation,
    dtype: str,
    layout: str,
    device: str,
) -> None:
    n, c, h, w, k, separate = case
    torch.manual_seed(0)
    rows = 2 * k if separate else k
    # The mean is much larger than the deviation.
    x = (torch.randn(n, c, h, w) + 20).to(DTYPES[dtype]).to(memory_format=LAYOUTS[layout])
    dy = torch.randn(n, c, h, w).to(DTYPES[dtype])
    small = [1 + 0.1 * torch.randn(k, c), 0.1 * torch.randn(k, c)]
    small += [torch.randn(rows, c) / (20 * c), torch.randn(rows)]
    exact = [v.double() for v in small]
    if activation != Activation.NONE:  # on either side of its kinks it is right
        y = _run(PlainPasses(), x.double(), dy.double(), exact, Activation.NONE)["y"]
        dy = torch.where((y.abs() < 1e-3) | ((y - 6).abs() < 1e-3), 0, dy)
    expected = _run(PlainPasses(), x.double(), dy.double(), exact, activation)
    moved = [v.to(device) for v in small]
    ours = _run(TritonPasses(), x.to(device), dy.to(device), moved, activation)
    assert ours["y"].stride() == ours["dx"].stride() == x.stride()
    for name, value in ours.items():
        tolerance = 1e-2 if dtype != "float32" and name in ("y", "dx") else 2e-5
        assert relative_error(value.cpu(), expected[name]) <= tolerance, name


def _run(
    passes: Passes, x: Tensor, dy: Tensor, small: list[Tensor], activation: Activation
) -> dict[str, Tensor]:
    weight, bias, head_weight, head_bias = small
    dy = dy.contiguous(
        memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last
    )
    mixture, affine, centre, unbiased, rstd = passes.prepare(
        x, weight, bias, head_weight, head_bias, 1e-5
    )
    y = passes.apply(x, affine, centre, rstd, activation)
    found = passes.collect(dy, x, mixture, weight, bias, head_weight, centre, rstd, activation)
    gradients = found._asdict()
    moments = {name: gradients[name].clone() for name in ("mean_grad", "folded")}
    dx = passes.gradient(
        dy, x, found.affine, centre, rstd, found.mean_grad, found.folded, activation
    )
    forward = {"mixture": mixture, "centre": centre, "unbiased": unbiased, "rstd": rstd}
    return {**gradients, **moments, **forward, "y": y, "dx": dx}


def test_whole_operator_runs_on_them(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = AttentiveNorm2d(24, 5, activation="relu").to(device)
    x = torch.randn(3, 24, 6, 6, device=device)

    def gradients(choice: str) -> list[Tensor]:
        monkeypatch.setattr(fused, "KERNELS", choice)
        leaf = x.clone().requires_grad_()
        # Autocast, under which training runs, changes nothing inside.
        with torch.autocast(device, torch.bfloat16):
            y = module(leaf)
        return [y, *torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()])]

    for ours, plain in zip(gradients("triton"), gradients("plain"), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
