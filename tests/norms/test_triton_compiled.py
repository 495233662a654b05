"""What Triton makes of the kernels for GPUs that are not here: counted in the machine code.

A kernel that reduces over pixels in its loop reaches half the memory's speed, and one that spills
registers a fraction; neither shows in its results.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from attnorm.norms import triton_passes

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from attnorm.norms import triton_backward, triton_forward  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled by the interpreter"
)

# A100, H100, B200.
ARCHITECTURES = (80, 90, 100)
# What a multiprocessor lends to one block.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# Arguments that are activations, numbers, or known when compiling; all others are float32.
ACTIVATIONS = {"x", "dy", "y", "dx"}
SIZES = {"n", "c", "p", "k", "rows", "stride_c", "stride_p"}
CHANNELS_LAST = {"BLOCK_C": 32, "BLOCK_P": 128, "stride_c": 1, "num_warps": 8}
CONTIGUOUS = {"BLOCK_C": 2, "BLOCK_P": 1024, "stride_p": 1, "num_warps": 4}
LAYOUTS = {"channels_last": CHANNELS_LAST, "contiguous": CONTIGUOUS}
REDUCING = ("moments_kernel", "reduce_kernel")
COMPONENTS = (20, 64, 128)
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("moments_kernel", layout) for layout in LAYOUTS.values()),
    *((name, {**layout, "ACTIVATION": 2})
      for name in ("apply_kernel", "reduce_kernel", "gradient_kernel")
      for layout in LAYOUTS.values()),
    *((name, {**triton_passes._small_blocks(BLOCK_K=k), "SEPARATE": True})
      for name in ("head_kernel", "logits_backward_kernel") for k in COMPONENTS),
    *(("head_backward_kernel", triton_passes._small_blocks(BLOCK_R=rows)) for rows in COMPONENTS),
]  # fmt: skip


def on_architectures(cases: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    """Each on one architecture, a kernel's variants on different ones; slow on all others."""
    return [
        pytest.param(
            *(name, constants, architecture),
            marks=() if CASES.index((name, constants)) % 3 == place else (pytest.mark.slow,),
            id=f"{name}-{CASES.index((name, constants))}-{architecture}",
        )
        for name, constants in cases
        for place, architecture in enumerate(ARCHITECTURES)
    ]


def compiled(name: str, constants: dict[str, Any], architecture: int) -> Any:
    """The kernel as a launch in fp16 compiles it: addresses and channels are multiples of 16."""
    kernel = getattr(triton_forward, name, None) or getattr(triton_backward, name)
    constants = dict(constants)
    options = {"num_warps": constants.pop("num_warps")}
    signature = {
        argument: "constexpr"
        if argument in constants
        else "fp32"
        if argument == "eps"
        else "i32"
        if argument in SIZES
        else "*fp16"
        if argument in ACTIVATIONS
        else "*fp32"
        for argument in kernel.arg_names
    }
    aligned = {"c", "stride_c", "stride_p"} - constants.keys()
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(key),): value for key, value in constants.items()},
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, argument in enumerate(kernel.arg_names)
            if signature[argument].startswith("*") or argument in aligned
        },
    )
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def loops(ptx: str) -> list[list[str]]:
    """The instructions between a label and a branch back to it."""
    lines = [line.strip() for line in ptx.splitlines()]
    labels: dict[str, int] = {}
    found = []
    for number, line in enumerate(lines):
        if label := re.match(r"(\$\w+):", line):
            labels[label[1]] = number
        elif (branch := re.search(r"\bbra(?:\.uni)?\s+(\$\w+)", line)) and branch[1] in labels:
            found.append(lines[labels[branch[1]] : number])
    return found


def tool(name: str, *arguments: str) -> str:
    """The output of one of the CUDA tools that come with Triton."""
    if not (TOOLS / name).exists():
        pytest.skip(f"this Triton brings no {name}")
    done = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize(("name", "constants", "architecture"), on_architectures(CASES))
def test_kernels_fit_a_gpu_that_is_not_here_and_spill_nothing(
    name: str, constants: dict[str, Any], architecture: int, tmp_path: Path
) -> None:
    kernel = compiled(name, constants, architecture)
    assert kernel.metadata.shared <= SHARED_MEMORY[architecture]
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    usage = re.search(r"REG:(\d+) STACK:(\d+)", tool("cuobjdump", "-res-usage", str(binary)))
    assert usage is not None
    assert int(usage[2]) == 0, f"{name} keeps {usage[2]} bytes of its registers in memory"


@pytest.mark.parametrize(
    ("name", "constants", "architecture"),
    on_architectures([case for case in CASES if case[0] in REDUCING]),
)
def test_the_loop_over_pixels_exchanges_nothing_between_threads(
    name: str, constants: dict[str, Any], architecture: int
) -> None:
    ptx = compiled(name, constants, architecture).asm["ptx"]
    over_pixels = [
        loop for loop in loops(ptx) if any("ld.global" in line and ".b" in line for line in loop)
    ]
    assert over_pixels, "the loop was not found"
    for loop in over_pixels:
        exchanges = [line for line in loop if re.search(r"\b(shfl|bar|barrier|redux)\.", line)]
        assert not exchanges, f"{len(exchanges)} in the loop, the first is {exchanges[0]}"
    # They come once, after it; and the counting itself sees them.
    assert re.search(r"\bshfl\.", ptx)
    assert re.search(r"\b(bar|barrier)\.", ptx)


@pytest.mark.parametrize("name", REDUCING)
def test_rows_of_channels_are_read_sixteen_bytes_at_a_time(name: str) -> None:
    constants = {**CHANNELS_LAST, **({"ACTIVATION": 2} if name == "reduce_kernel" else {})}
    ptx = compiled(name, constants, 90).asm["ptx"]
    wide = re.findall(r"ld\.global\S*\.v4\.b32", ptx)
    assert len(wide) >= (2 if name == "moments_kernel" else 4)
