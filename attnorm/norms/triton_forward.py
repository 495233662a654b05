"""Triton kernels of Attentive Normalization, forward; ``triton_passes`` launches them.

Activations x, dy, y, dx are N x C x P with any strides of channel and pixel; all else is float32.
"""

# Triton's compiler, not a type checker, gives a kernel's arguments their types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n"])
def moments_kernel(
    x, moments, n, c, p, stride_c, stride_p, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr
):
    """The means of all instances and channels, then their biased variances."""
    i = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    at = x + i * c * p + j[:, None].to(tl.int64) * stride_c
    pixel = tl.arange(0, BLOCK_P)
    # Every slot of the block follows its own pixels (Welford); slots are merged once, as Chan et
    # al. merge samples: a sum over pixels exchanges values between threads and warps.
    centre = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    squares = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for start in range(0, p, BLOCK_P):
        mask = (j < c)[:, None] & (start + pixel < p)[None, :]
        here = at + (start + pixel)[None, :].to(tl.int64) * stride_p
        values = tl.load(here, mask, 0.0).to(tl.float32)
        share = 1.0 / (start // BLOCK_P + 1)
        distance = tl.where(mask, values - centre, 0.0)
        centre += distance * share
        squares += distance * distance * (1.0 - share)
    count = ((tl.maximum(p - pixel, 0) + BLOCK_P - 1) // BLOCK_P).to(tl.float32)[None, :]
    whole = tl.sum(centre * count, 1) / p
    # The distances' own sum is the rounding error of the mean.
    whole += tl.sum((centre - whole[:, None]) * count, 1) / p
    distance = centre - whole[:, None]
    total = tl.sum(squares + distance * distance * count, 1)
    to = moments + i * c + j
    tl.store(to, whole, j < c)
    tl.store(to + n * c, total / p, j < c)


@triton.jit(do_not_specialize=["n"])
def head_kernel(
    mean,
    weight,
    bias,
    head_weight,
    head_bias,
    mixture,
    affine,
    centre,
    unbiased,
    rstd,
    n,
    c,
    p,
    k,
    rows,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SEPARATE: tl.constexpr,
):
    """The first programs take instances (mixture, affine), the others channels (statistics).

    ``mean`` is what moments_kernel wrote, the variances behind it.
    """
    blocks = tl.cdiv(n, BLOCK_N)
    if tl.program_id(0) < blocks:
        i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        row = tl.arange(0, BLOCK_K)
        own = _mixture(mean, head_weight, head_bias, i, row, n, c, k, BLOCK_N, BLOCK_C, BLOCK_K)
        inside = (i < n)[:, None] & (row < k)[None, :]
        tl.store(mixture + i[:, None] * rows + row[None, :], own, inside)
        for_offset = own
        if SEPARATE:
            for_offset = _mixture(
                mean,
                head_weight + k * c,
                head_bias + k,
                i,
                row,
                n,
                c,
                k,
                BLOCK_N,
                BLOCK_C,
                BLOCK_K,
            )
            tl.store(mixture + i[:, None] * rows + k + row[None, :], for_offset, inside)
        for start in range(0, c, BLOCK_C):
            j = start + tl.arange(0, BLOCK_C)
            wanted = (row < k)[:, None] & (j < c)[None, :]
            scales = tl.load(weight + row[:, None] * c + j[None, :], wanted, 0.0)
            offsets = tl.load(bias + row[:, None] * c + j[None, :], wanted, 0.0)
            to = affine + i[:, None] * c + j[None, :]
            inside_c = (i < n)[:, None] & (j < c)[None, :]
            tl.store(to, tl.dot(own, scales, input_precision="ieee"), inside_c)
            tl.store(to + n * c, tl.dot(for_offset, offsets, input_precision="ieee"), inside_c)
    else:
        j = (tl.program_id(0) - blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
        first = tl.load(mean + j, j < c, 0.0)
        total = tl.zeros([BLOCK_C], tl.float32)
        for start in range(0, n, BLOCK_N):
            i = start + tl.arange(0, BLOCK_N)
            inside = (i < n)[:, None] & (j < c)[None, :]
            values = tl.load(mean + i[:, None] * c + j[None, :], inside, 0.0)
            total += tl.sum(tl.where(inside, values - first[None, :], 0.0), 0)
        middle = first + total / n
        squares = tl.zeros([BLOCK_C], tl.float32)
        for start in range(0, n, BLOCK_N):
            i = start + tl.arange(0, BLOCK_N)
            inside = (i < n)[:, None] & (j < c)[None, :]
            values = tl.load(mean + i[:, None] * c + j[None, :], inside, 0.0)
            within = tl.load(mean + n * c + i[:, None] * c + j[None, :], inside, 0.0)
            distance = values - middle[None, :]
            squares += tl.sum(tl.where(inside, within + distance * distance, 0.0), 0)
        biased = squares / n
        count = n.to(tl.float32) * p
        tl.store(centre + j, middle, j < c)
        tl.store(rstd + j, 1.0 / tl.sqrt(biased + eps), j < c)
        tl.store(unbiased + j, biased * (count / tl.maximum(count - 1.0, 1.0)), j < c)


@triton.jit
def _mixture(
    mean,
    head_weight,
    head_bias,
    i,
    row,
    n,
    c,
    k,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """sigmoid(mean W' + b) for the instances i and the outputs ``row``."""
    logits = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, c, BLOCK_C):
        j = start + tl.arange(0, BLOCK_C)
        inside = (i < n)[:, None] & (j < c)[None, :]
        values = tl.load(mean + i[:, None] * c + j[None, :], inside, 0.0)
        wanted = (j < c)[:, None] & (row < k)[None, :]
        taps = tl.load(head_weight + row[None, :] * c + j[:, None], wanted, 0.0)
        logits += tl.dot(values, taps, input_precision="ieee")
    logits += tl.load(head_bias + row, row < k, 0.0)[None, :]
    return 1.0 / (1.0 + tl.exp(-logits))


@triton.jit(do_not_specialize=["n"])
def apply_kernel(
    x,
    affine,
    centre,
    rstd,
    y,
    n,
    c,
    p,
    stride_c,
    stride_p,
    ACTIVATION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    c_blocks = tl.cdiv(c, BLOCK_C)
    i = tl.program_id(0) // c_blocks
    j = tl.program_id(0) % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    pixel = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    mask = (j < c)[:, None] & (pixel < p)[None, :]
    at = i.to(tl.int64) * c * p + j[:, None].to(tl.int64) * stride_c
    at += pixel[None, :].to(tl.int64) * stride_p
    scale = tl.load(affine + i * c + j, j < c, 0.0) * tl.load(rstd + j, j < c, 0.0)
    shift = tl.load(affine + n * c + i * c + j, j < c, 0.0)
    middle = tl.load(centre + j, j < c, 0.0)
    values = tl.load(x + at, mask, 0.0).to(tl.float32)
    values = scale[:, None] * (values - middle[:, None]) + shift[:, None]
    if ACTIVATION > 0:
        values = tl.where(values < 0, 0.0, values)  # what is not a number stays none
    if ACTIVATION == 2:
        values = tl.where(values > 6, 6.0, values)
    tl.store(y + at, values.to(y.dtype.element_ty), mask)
