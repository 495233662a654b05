"""Triton kernels of Attentive Normalization, backward; ``triton_passes`` launches them.

Activations x, dy, y, dx are N x C x P with any strides of channel and pixel; all else is float32.
"""

# Triton's compiler, not a type checker, gives a kernel's arguments their types.
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n"])
def reduce_kernel(
    dy,
    x,
    mixture,
    weight,
    bias,
    centre,
    rstd,
    affine,
    sums,
    n,
    c,
    p,
    k,
    rows,
    stride_c,
    stride_p,
    ACTIVATION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    i = tl.program_id(0)
    j = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    gain = tl.zeros([BLOCK_C], tl.float32)
    offset = tl.zeros([BLOCK_C], tl.float32)
    for component in range(0, k):
        own = tl.load(mixture + i * rows + component)
        for_offset = tl.load(mixture + i * rows + rows - k + component)
        gain += own * tl.load(weight + component * c + j, j < c, 0.0)
        offset += for_offset * tl.load(bias + component * c + j, j < c, 0.0)
    tl.store(affine + i * c + j, gain, j < c)
    tl.store(affine + n * c + i * c + j, offset, j < c)
    middle = tl.load(centre + j, j < c, 0.0)
    scale = gain * tl.load(rstd + j, j < c, 0.0)
    # Summed over pixels once, after the loop: see triton_forward.moments_kernel.
    first = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    second = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    third = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    at = i.to(tl.int64) * c * p + j[:, None].to(tl.int64) * stride_c
    for start in range(0, p, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        mask = (j < c)[:, None] & (pixel < p)[None, :]
        here = at + pixel[None, :].to(tl.int64) * stride_p
        values = tl.load(x + here, mask, 0.0).to(tl.float32)
        grad = tl.load(dy + here, mask, 0.0).to(tl.float32)
        deviation = tl.where(mask, values - middle[:, None], 0.0)
        if ACTIVATION > 0:
            value = scale[:, None] * deviation + offset[:, None]
            grad = tl.where(value <= 0, 0.0, grad)
            if ACTIVATION == 2:
                grad = tl.where(value >= 6, 0.0, grad)
        first += grad
        second += grad * deviation
        third += deviation
    to = sums + i * c + j
    tl.store(to, tl.sum(first, 1), j < c)
    tl.store(to + n * c, tl.sum(second, 1), j < c)
    tl.store(to + 2 * n * c, tl.sum(third, 1), j < c)


@triton.jit(do_not_specialize=["n"])
def logits_backward_kernel(
    sums,
    mixture,
    weight,
    bias,
    affine,
    rstd,
    logit_grad,
    weight_grad,
    bias_grad,
    folded,
    n,
    c,
    p,
    k,
    rows,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SEPARATE: tl.constexpr,
):
    """The first programs take instances (logits), the others channels (γ, β, folded)."""
    blocks = tl.cdiv(n, BLOCK_N)
    row = tl.arange(0, BLOCK_K)
    if tl.program_id(0) < blocks:
        i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        for_scale = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for_offset = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for start in range(0, c, BLOCK_C):
            j = start + tl.arange(0, BLOCK_C)
            inside = (i < n)[:, None] & (j < c)[None, :]
            at = sums + i[:, None] * c + j[None, :]
            first = tl.load(at, inside, 0.0)
            second = tl.load(at + n * c, inside, 0.0) * tl.load(rstd + j, j < c, 0.0)[None, :]
            wanted = (j < c)[:, None] & (row < k)[None, :]
            scales = tl.load(weight + row[None, :] * c + j[:, None], wanted, 0.0)
            offsets = tl.load(bias + row[None, :] * c + j[:, None], wanted, 0.0)
            for_scale += tl.dot(second, scales, input_precision="ieee")
            for_offset += tl.dot(first, offsets, input_precision="ieee")
        inside_k = (i < n)[:, None] & (row < k)[None, :]
        at_k = i[:, None] * rows + row[None, :]
        own = tl.load(mixture + at_k, inside_k, 0.0)
        if SEPARATE:
            other = tl.load(mixture + at_k + k, inside_k, 0.0)
            tl.store(logit_grad + at_k + k, for_offset * other * (1.0 - other), inside_k)
        else:
            for_scale += for_offset
        tl.store(logit_grad + at_k, for_scale * own * (1.0 - own), inside_k)
    else:
        j = (tl.program_id(0) - blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
        reciprocal = tl.load(rstd + j, j < c, 0.0)
        scales_grad = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
        offsets_grad = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
        mean_dy = tl.zeros([BLOCK_C], tl.float32)
        mean_dy_xhat = tl.zeros([BLOCK_C], tl.float32)
        for start in range(0, n, BLOCK_N):
            i = start + tl.arange(0, BLOCK_N)
            inside = (i < n)[:, None] & (j < c)[None, :]
            at = i[:, None] * c + j[None, :]
            first = tl.load(sums + at, inside, 0.0)
            second = tl.load(sums + at + n * c, inside, 0.0) * reciprocal[None, :]
            gain = tl.load(affine + at, inside, 0.0)
            mean_dy += tl.sum(gain * first, 0)
            mean_dy_xhat += tl.sum(gain * second, 0)
            wanted = (row < k)[:, None] & (i < n)[None, :]
            from_mixture = mixture + i[None, :] * rows + row[:, None]
            own = tl.load(from_mixture, wanted, 0.0)
            other = tl.load(from_mixture + rows - k, wanted, 0.0)
            scales_grad += tl.dot(own, second, input_precision="ieee")
            offsets_grad += tl.dot(other, first, input_precision="ieee")
        to = row[:, None] * c + j[None, :]
        inside_kc = (row < k)[:, None] & (j < c)[None, :]
        tl.store(weight_grad + to, scales_grad, inside_kc)
        tl.store(bias_grad + to, offsets_grad, inside_kc)
        count = n.to(tl.float32) * p
        tl.store(folded + j, mean_dy / count, j < c)
        tl.store(folded + c + j, mean_dy_xhat / count, j < c)


@triton.jit(do_not_specialize=["n"])
def head_backward_kernel(
    sums,
    logit_grad,
    head_weight,
    centre,
    head_weight_grad,
    head_bias_grad,
    mean_grad,
    n,
    c,
    p,
    rows,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    j = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.arange(0, BLOCK_R)
    middle = tl.load(centre + j, j < c, 0.0)
    inside_r = (row < rows)[:, None] & (j < c)[None, :]
    taps = tl.load(head_weight + row[:, None] * c + j[None, :], inside_r, 0.0)
    taps_grad = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    bias_grad = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, n, BLOCK_N):
        i = start + tl.arange(0, BLOCK_N)
        inside = (i < n)[:, None] & (j < c)[None, :]
        at = i[:, None] * c + j[None, :]
        rest = tl.load(sums + at + 2 * n * c, inside, 0.0)
        mean = tl.where(inside, middle[None, :] + rest / p, 0.0)
        logits_mask = (i < n)[:, None] & (row < rows)[None, :]
        grad = tl.load(logit_grad + i[:, None] * rows + row[None, :], logits_mask, 0.0)
        turned_mask = (row < rows)[:, None] & (i < n)[None, :]
        turned = tl.load(logit_grad + i[None, :] * rows + row[:, None], turned_mask, 0.0)
        tl.store(mean_grad + at, tl.dot(grad, taps, input_precision="ieee"), inside)
        taps_grad += tl.dot(turned, mean, input_precision="ieee")
        bias_grad += tl.sum(turned, 1)
    tl.store(head_weight_grad + row[:, None] * c + j[None, :], taps_grad, inside_r)
    if tl.program_id(0) == 0:
        tl.store(head_bias_grad + row, bias_grad, row < rows)


@triton.jit(do_not_specialize=["n"])
def gradient_kernel(
    dy,
    x,
    affine,
    centre,
    rstd,
    mean_grad,
    folded,
    dx,
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
    reciprocal = tl.load(rstd + j, j < c, 0.0)
    scale = tl.load(affine + i * c + j, j < c, 0.0) * reciprocal
    middle = tl.load(centre + j, j < c, 0.0)
    slope = -reciprocal * reciprocal * tl.load(folded + c + j, j < c, 0.0)
    shift = tl.load(mean_grad + i * c + j, j < c, 0.0) / p
    shift -= reciprocal * tl.load(folded + j, j < c, 0.0)
    deviation = tl.load(x + at, mask, 0.0).to(tl.float32) - middle[:, None]
    grad = tl.load(dy + at, mask, 0.0).to(tl.float32)
    if ACTIVATION > 0:
        offset = tl.load(affine + n * c + i * c + j, j < c, 0.0)
        value = scale[:, None] * deviation + offset[:, None]
        grad = tl.where(value <= 0, 0.0, grad)
        if ACTIVATION == 2:
            grad = tl.where(value >= 6, 0.0, grad)
    result = scale[:, None] * grad + (slope[:, None] * deviation + shift[:, None])
    tl.store(dx + at, result.to(dx.dtype.element_ty), mask)
