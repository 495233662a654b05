"""The processor's instructions, as far as the choice of an implementation depends on them.

torch's kernels, oneDNN's and ours each follow their own query, so this is the only place that asks.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import NamedTuple

import torch


class Processor(NamedTuple):
    """Instructions that this process may use.

    Attributes:
        architecture: ``"x86_64"``, ``"aarch64"``, ... as the operating system spells it.
        instructions: Those of torch's kernels: ``"AVX512"``, ``"AVX2"``, ``"DEFAULT"`` (on x86-64
            SSE2), or another architecture's. Follows ``ATEN_CPU_CAPABILITY``.
        has_bfloat16: True if oneDNN computes in bfloat16; otherwise torch falls back to slower
            code of its own. Follows ``ONEDNN_MAX_CPU_ISA``.
        has_fast_bfloat16: True if there are instructions for products in bfloat16, and torch's
            kernels and oneDNN are allowed to use them.
    """

    architecture: str
    instructions: str
    has_bfloat16: bool
    has_fast_bfloat16: bool


@cache
def processor() -> Processor:
    """Return the instructions that this process may use.

    torch's cpuid queries (AVX512_BF16, AMX) ignore the two environment variables: they come last.
    """
    instructions = torch.backends.cpu.get_cpu_capability()
    has_query = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    has_bfloat16 = has_query and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    is_fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return Processor(
        platform.machine(),
        instructions,
        has_bfloat16,
        instructions == "AVX512" and has_bfloat16 and is_fast,
    )
