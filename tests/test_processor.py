"""One place asks what the processor can do, and training works with fewer instructions.

Child processes are limited by ``ATEN_CPU_CAPABILITY`` and ``ONEDNN_MAX_CPU_ISA``. The two reach
torch's kernels, oneDNN, everything that this project chooses by :func:`processor`, and the flags of
the passes in C. They do not reach torch's cpuid queries, MKL (products in float32), NumPy, Pillow,
torchvision's decoders and DALI, which go on with all that this machine has; and no variable adds
instructions that it lacks.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attnorm import AttentiveNorm2d
from attnorm.models import cpu
from attnorm.models.cpu.products import product_dtypes
from attnorm.norms import native
from attnorm.processor import processor
from tests.conftest import ROOT, SHORT, write_photos

LIMITS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "DEFAULT": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="limits x86-64 processors")


def step(dtype: torch.dtype) -> tuple[float, float]:
    """Loss and norm of the gradient of a training step in ``dtype``, with all that is chosen."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()),
        *(nn.Conv2d(32, 32, 3, 2, 1, groups=32, bias=False), AttentiveNorm2d(32), nn.ReLU()),
        # More weights than pixels, and a window at every fourth pixel.
        *(nn.Conv2d(32, 256, 3, stride=4, padding=1), nn.Flatten(), nn.Linear(256, 10)),
    )
    model = cpu.for_training(network.to(memory_format=torch.channels_last).train())
    x = torch.randn(8, 3, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        loss = model(x).float().square().mean()
    loss.backward()
    squares = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.stack(squares).sum().sqrt().item()


def report() -> dict[str, Any]:
    """Choices of this process, and its results."""
    return {
        "instructions": processor().instructions,
        "bf16": processor().has_bfloat16,
        "fast": processor().has_fast_bfloat16,
        "products": [str(dtype) for dtype in product_dtypes()],
        "flags": list(native.instruction_flags(processor())),
        "C": native.load() is not None,
        "fp32 step": step(torch.float32),
        "bf16 step": step(torch.bfloat16),
    }


def limited(instructions: str, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with this command on a processor that has these instructions at most."""
    environment = {**os.environ, **LIMITS[instructions], "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@on_x86
@pytest.mark.parametrize("instructions", ["AVX2", pytest.param("DEFAULT", marks=pytest.mark.slow)])
def test_choices_follow_the_limits_and_results_do_not(instructions: str, tmp_path: Path) -> None:
    command = "import json; from tests.test_processor import report; print(json.dumps(report()))"
    found = json.loads(limited(instructions, "-c", command, cwd=tmp_path).stdout)
    assert found["instructions"] == instructions
    assert not found["bf16"]
    assert not found["fast"]
    assert found["flags"] == (["-mavx2", "-mfma"] if instructions == "AVX2" else [])
    assert found["products"] == (["torch.float32"] if instructions == "AVX2" else [])
    here = report()
    assert found["C"] == here["C"], "the passes in C are built for every x86-64"
    assert found["fp32 step"] == pytest.approx(here["fp32 step"], rel=1e-3)
    assert found["bf16 step"] == pytest.approx(here["bf16 step"], rel=0.05)


@on_x86
def test_a_whole_run_in_bfloat16_without_instructions_for_it(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos", val_images=2)
    data = ["data=folder", f"data.root={root}", "data.image_size=32", "data.resize_size=32"]
    settings = [*SHORT, *data, "epochs=1", "norm=an", "precision=bf16", "hydra.run.dir=run"]
    done = limited("AVX2", str(ROOT / "train.py"), *settings, cwd=tmp_path)
    assert "neither AVX512_BF16 nor AMX" in done.stdout
    finished = json.loads((tmp_path / "run" / "result.json").read_text())
    assert finished["final"]["images"] == 6
    assert math.isfinite(finished["final"]["loss"])


@pytest.mark.parametrize(
    ("instructions", "onednn", "bf16", "amx", "expected"),
    [
        pytest.param("AVX512", True, True, False, (True, True), id="Zen 5"),
        pytest.param("AVX512", True, False, True, (True, True), id="AMX"),
        pytest.param("AVX512", True, False, False, (True, False), id="Skylake-X"),
        pytest.param("AVX2", False, False, False, (False, False), id="Zen 3"),
        pytest.param("AVX2", True, False, False, (True, False), id="AVX_NE_CONVERT"),
        pytest.param("AVX2", True, True, True, (True, False), id="torch limited to AVX2"),
        pytest.param("AVX512", False, True, True, (False, False), id="oneDNN limited to AVX2"),
        pytest.param("SVE256", True, False, False, (True, False), id="Graviton 3"),
    ],
)
def test_the_query_that_an_environment_variable_limits_comes_first(
    instructions: str,
    onednn: bool,
    bf16: bool,
    amx: bool,
    expected: tuple[bool, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    asked = processor.__wrapped__()
    assert asked.instructions == instructions
    assert (asked.has_bfloat16, asked.has_fast_bfloat16) == expected
