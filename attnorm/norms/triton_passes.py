"""The passes as Triton kernels for a GPU: three launches forward, four backward.

Block sizes follow from the shape of an image alone, and the batch size is never specialized on, so
batches of another size compile nothing new.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, lru_cache

import torch

# Products and sums become one instruction; Triton 3.10 turns that off unless somebody asks for it.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from torch import Tensor

from attnorm.norms import triton_backward as backward
from attnorm.norms import triton_forward as forward
from attnorm.norms.passes import Collected, statistics_dtype

_TILE = 4096


class TritonPasses:
    """fp16, bf16 and fp32 activations, contiguous or channels_last, of any size."""

    ignores_autocast = True

    def prepare(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        head_weight: Tensor,
        head_bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        n, c = x.shape[:2]
        pixels, (k, rows) = x.shape[2] * x.shape[3], (weight.shape[0], head_bias.shape[0])
        empty = _allocator(x)
        moments, mixture, affine = empty(2, n, c), empty(n, rows), empty(2, n, c)
        centre, unbiased, rstd = empty(c), empty(c), empty(c)
        tile = _tile_of(x)
        grid = (n, triton.cdiv(c, tile["BLOCK_C"]))
        forward.moments_kernel[grid](x, moments, n, c, pixels, *_strides(x), **tile)
        small = _small_blocks(BLOCK_K=k)
        forward.head_kernel[_small_grid(small, n, c)](
            *(moments, weight, bias, head_weight, head_bias),
            *(mixture, affine, centre, unbiased, rstd),
            *(n, c, pixels, k, rows, eps),
            **small,
            SEPARATE=rows != k,
        )
        return mixture, affine, centre, unbiased, rstd

    def apply(
        self, x: Tensor, affine: Tensor, centre: Tensor, rstd: Tensor, activation: int
    ) -> Tensor:
        y, (n, c) = torch.empty_like(x), x.shape[:2]
        sizes = (n, c, x.shape[2] * x.shape[3], *_strides(x))
        tile = _tile_of(x)
        forward.apply_kernel[_tile_grid(x, tile)](
            x, affine, centre, rstd, y, *sizes, ACTIVATION=int(activation), **tile
        )
        return y

    def collect(
        self,
        dy: Tensor,
        x: Tensor,
        mixture: Tensor,
        weight: Tensor,
        bias: Tensor,
        head_weight: Tensor,
        centre: Tensor,
        rstd: Tensor,
        activation: int,
    ) -> Collected:
        n, c = x.shape[:2]
        pixels, (k, rows) = x.shape[2] * x.shape[3], (weight.shape[0], mixture.shape[1])
        empty = _allocator(x)
        sums, logit_grad = empty(3, n, c), empty(n, rows)
        found = Collected(
            weight_grad=empty(k, c),
            bias_grad=empty(k, c),
            head_weight_grad=empty(rows, c),
            head_bias_grad=empty(rows),
            affine=empty(2, n, c),
            mean_grad=empty(n, c),
            folded=empty(2, c),
        )
        tile = _tile_of(x)
        backward.reduce_kernel[(n, triton.cdiv(c, tile["BLOCK_C"]))](
            *(dy, x, mixture, weight, bias, centre, rstd, found.affine, sums),
            *(n, c, pixels, k, rows, *_strides(x)),
            ACTIVATION=int(activation),
            **tile,
        )
        small = _small_blocks(BLOCK_K=k)
        backward.logits_backward_kernel[_small_grid(small, n, c)](
            *(sums, mixture, weight, bias, found.affine, rstd, logit_grad),
            *(found.weight_grad, found.bias_grad, found.folded),
            *(n, c, pixels, k, rows),
            **small,
            SEPARATE=rows != k,
        )
        small = _small_blocks(BLOCK_R=rows)
        backward.head_backward_kernel[(triton.cdiv(c, small["BLOCK_C"]),)](
            *(sums, logit_grad, head_weight, centre),
            *(found.head_weight_grad, found.head_bias_grad, found.mean_grad),
            *(n, c, pixels, rows),
            **small,
        )
        return found

    def gradient(
        self,
        dy: Tensor,
        x: Tensor,
        affine: Tensor,
        centre: Tensor,
        rstd: Tensor,
        mean_grad: Tensor,
        folded: Tensor,
        activation: int,
    ) -> Tensor:
        dx, (n, c) = torch.empty_like(x), x.shape[:2]
        sizes = (n, c, x.shape[2] * x.shape[3], *_strides(x))
        small = (affine, centre, rstd, mean_grad, folded)
        tile = _tile_of(x)
        backward.gradient_kernel[_tile_grid(x, tile)](
            dy, x, *small, dx, *sizes, ACTIVATION=int(activation), **tile
        )
        return dx


def _allocator(x: Tensor) -> Callable[..., Tensor]:
    dtype = statistics_dtype(x)
    return lambda *shape: x.new_empty(shape, dtype=dtype)


def _strides(x: Tensor) -> tuple[int, int]:
    """Of channels and of pixels."""
    pixels = x.shape[2] * x.shape[3]
    return (pixels, 1) if x.is_contiguous() else (1, x.shape[1])


def _tile_of(x: Tensor) -> dict[str, int]:
    return _tile(x.shape[1], x.shape[2] * x.shape[3], x.is_contiguous())


# Working these out takes longer than to launch a kernel, and every step asks for the same ones.
@lru_cache(maxsize=4096)
def _tile(channels: int, pixels: int, contiguous: bool) -> dict[str, int]:
    """Channels x pixels of a block: long along memory, both powers of two."""
    channels, pixels = triton.next_power_of_2(channels), triton.next_power_of_2(pixels)
    if contiguous:
        block_p = min(pixels, 1024)
        block_c = min(channels, _TILE // 2 // block_p)
    else:
        # 32 half-precision channels fill two memory sectors, and narrow blocks mean more programs.
        block_c = min(channels, 32)
        block_p = min(pixels, _TILE // block_c)
    return {
        "BLOCK_C": block_c,
        "BLOCK_P": block_p,
        "num_warps": 8 if block_c * block_p >= _TILE else 4,
    }


def _tile_grid(x: Tensor, tile: dict[str, int]) -> tuple[int, int]:
    c_blocks = triton.cdiv(x.shape[1], tile["BLOCK_C"])
    return x.shape[0] * c_blocks, triton.cdiv(x.shape[2] * x.shape[3], tile["BLOCK_P"])


@cache
def _small_blocks(**rows: int) -> dict[str, int]:
    """Instances x channels x attention outputs of the small matrix products.

    Eight warps, so that one computes while another waits, and many programs with few rounds each.
    The more outputs, the smaller the rest: products must stay in registers. 16 is the least that a
    product takes.
    """
    ((name, number),) = rows.items()
    padded = max(16, triton.next_power_of_2(number))
    block_n, block_c = (32, 32) if padded <= 32 else (32, 16) if padded <= 64 else (16, 16)
    return {"BLOCK_N": block_n, "BLOCK_C": block_c, name: padded, "num_warps": 8}


def _small_grid(blocks: dict[str, int], n: int, c: int) -> tuple[int]:
    """One program for each block of instances, then one for each of channels."""
    return (triton.cdiv(n, blocks["BLOCK_N"]) + triton.cdiv(c, blocks["BLOCK_C"]),)
