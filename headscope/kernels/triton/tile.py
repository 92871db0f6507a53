"""Parts of the pattern from queries, keys and log-normalisers: rectangles, overviews, single weights, largest keys."""

from __future__ import annotations

import triton
import triton.language as tl

from headscope.kernels.triton.device import LOG2E, NEG, dot, shaped, weighted


@triton.jit
def _weights(
    rows, positions, rows_here, cols, cols_here, b, h, heads, n, offset, scale, softcap,
    Q, q_b, q_h, q_t, K, k_b, k_h, k_t, Lse,
    Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
    Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
    Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b,
    Groups, groups_b, groups_h, LogWeights,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, COUNT: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr, SHAPE: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr,
    HIDE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return the logarithm in base 2 of the attention of a block of rows to a block of keys, NEG where it is 0."""
    dims = tl.arange(0, BLOCK_D)
    queries = Q + b.to(tl.int64) * q_b + h.to(tl.int64) * q_h + rows[:, None].to(tl.int64) * q_t + dims[None, :]
    q = tl.load(queries, mask=rows_here[:, None] & (dims < D)[None, :], other=0.0)
    keys = K + b.to(tl.int64) * k_b + (h // GROUP).to(tl.int64) * k_h + cols[:, None].to(tl.int64) * k_t
    k = tl.load(keys + dims[None, :], mask=cols_here[:, None] & (dims < D)[None, :], other=0.0)
    lse = tl.load(Lse + (b * heads + h).to(tl.int64) * n + rows, mask=rows_here, other=0.0) * LOG2E
    t = shaped(
        dot(q, tl.trans(k), PRECISION, WIDE), cols[None, :], positions[:, None],
        rows_here[:, None] & cols_here[None, :], rows_here[:, None], b, h,
        Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
        Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
        Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b, scale, softcap, offset,
        SOFTCAP, BIAS, SHAPE, MASK, CAUSAL, HIDE, True,
    )  # fmt: skip
    t = tl.maximum(t - lse[:, None], NEG)
    if COUNT > 0:
        t = weighted(
            t, cols[None, :], rows[:, None], rows_here[:, None], b, h, heads, n,
            Groups, groups_b, groups_h, LogWeights, COUNT,
        )  # fmt: skip
    return t


@triton.jit
def tile(
    Q, q_b, q_h, q_t, K, k_b, k_h, k_t, Lse, Out, Positions, positions_b,
    Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
    Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
    Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b,
    Groups, groups_b, groups_h, LogWeights,
    heads, n, offset, scale, softcap, top, bottom, left, right, height, width, bin_rows, bin_cols,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    COUNT: tl.constexpr, SOME: tl.constexpr, POOL: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr, SHAPE: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr,
    HIDE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Rows ``top`` to ``bottom`` × keys ``left`` to ``right`` of one head, one number per pair or (``POOL``) per bin.

    POOL   0: every pair, Out (B, H, height, width); 1: mean, 2: maximum of each bin of bin_rows × bin_cols pairs
    """
    b = tl.program_id(2) // heads
    h = tl.program_id(2) % heads
    line = (b * heads + h).to(tl.int64) * height
    if POOL == 0:
        up = top + tl.program_id(0) * BLOCK_M
        beside = left + tl.program_id(1) * BLOCK_N
        down = up + 1
        end = beside + 1
    else:
        up = top + tl.program_id(0) * bin_rows
        beside = left + tl.program_id(1) * bin_cols
        bottom = tl.minimum(bottom, up + bin_rows)
        right = tl.minimum(right, beside + bin_cols)
        down = bottom
        end = right
    found = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(up, down, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        rows_here = rows < bottom
        positions = rows
        last = end
        if SOME:
            positions = tl.load(Positions + b * positions_b + rows, mask=rows_here, other=0)
        elif CAUSAL and POOL > 0:
            last = tl.minimum(end, start + BLOCK_M + offset)
        for first in range(beside, last, BLOCK_N):
            cols = first + tl.arange(0, BLOCK_N)
            t = _weights(
                rows, positions, rows_here, cols, cols < right, b, h, heads, n, offset, scale, softcap,
                Q, q_b, q_h, q_t, K, k_b, k_h, k_t, Lse,
                Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
                Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
                Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b,
                Groups, groups_b, groups_h, LogWeights, GROUP, D, BLOCK_D, COUNT,
                SOFTCAP, BIAS, SHAPE, MASK, CAUSAL, HIDE, PRECISION, WIDE,
            )  # fmt: skip
            p = tl.exp2(t)
            if POOL == 0:
                places = Out + (line + rows - top)[:, None] * width + (cols - left)[None, :]
                tl.store(places, p, mask=rows_here[:, None] & (cols < right)[None, :])
            elif POOL == 1:
                found += p
            else:
                found = tl.maximum(found, p)
    if POOL > 0:
        if POOL == 1:
            value = tl.sum(tl.sum(found, 1), 0) / ((bottom - up) * (right - beside)).to(tl.float32)
        else:
            value = tl.max(tl.max(found, 1), 0)
        tl.store(Out + (line + tl.program_id(0)) * width + tl.program_id(1), value)


@triton.jit
def lookup(
    Q, q_b, q_h, q_t, K, k_b, k_h, k_t, Lse, Out, Keys, keys_b, keys_h, Positions, positions_b,
    Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
    Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
    Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b,
    Groups, groups_b, groups_h, LogWeights,
    heads, n, tk, slots, offset, scale, softcap,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, COUNT: tl.constexpr,
    SOME: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr, SHAPE: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr,
    HIDE: tl.constexpr,
):  # fmt: skip
    """Attention of each row to one key of its own choice, Keys (B, H, n, slots), −1 for none; Out likewise."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    b = tl.program_id(1) // heads
    h = tl.program_id(1) % heads
    slot = tl.program_id(2)
    rows_here = rows < n
    positions = rows
    if SOME:
        positions = tl.load(Positions + b * positions_b + rows, mask=rows_here, other=0)
    wanted = tl.load(Keys + b * keys_b + h * keys_h + rows * slots + slot, mask=rows_here, other=-1).to(tl.int32)
    there = rows_here & (wanted >= 0) & (wanted < tk)
    cols = tl.where(there, wanted, 0)
    dims = tl.arange(0, BLOCK_D)
    queries = Q + b.to(tl.int64) * q_b + h.to(tl.int64) * q_h + rows[:, None].to(tl.int64) * q_t + dims[None, :]
    q = tl.load(queries, mask=rows_here[:, None] & (dims < D)[None, :], other=0.0)
    keys = K + b.to(tl.int64) * k_b + (h // GROUP).to(tl.int64) * k_h + cols[:, None].to(tl.int64) * k_t
    k = tl.load(keys + dims[None, :], mask=there[:, None] & (dims < D)[None, :], other=0.0)
    line = (b * heads + h).to(tl.int64) * n + rows
    lse = tl.load(Lse + line, mask=rows_here, other=0.0) * LOG2E
    t = shaped(
        tl.sum(q.to(tl.float32) * k.to(tl.float32), 1), cols, positions, there, rows_here, b, h,
        Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
        Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
        Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b, scale, softcap, offset,
        SOFTCAP, BIAS, SHAPE, MASK, CAUSAL, HIDE, True,
    )  # fmt: skip
    t = tl.maximum(t - lse, NEG)
    if COUNT > 0:
        t = weighted(t, cols, rows, rows_here, b, h, heads, n, Groups, groups_b, groups_h, LogWeights, COUNT)
    tl.store(Out + line * slots + slot, tl.exp2(t), mask=rows_here)


@triton.jit
def largest(
    Q, q_b, q_h, q_t, K, k_b, k_h, k_t, Lse, Keys, Positions, positions_b,
    Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
    Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
    Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b,
    Groups, groups_b, groups_h, LogWeights,
    heads, n, tk, offset, scale, softcap,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    COUNT: tl.constexpr, SOME: tl.constexpr, TOP: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr, SHAPE: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr,
    HIDE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Find the TOP keys of largest weight of each row, in no order: Keys (B, H, n, TOP) as code of logit and key.

    A code is the bits of the logit, in an order that integers keep, above the bits of −1 − key: the largest code is
    the largest weight, and of equal weights the earliest key.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    b = tl.program_id(1) // heads
    h = tl.program_id(1) % heads
    rows_here = rows < n
    positions = rows
    last = tk
    if SOME:
        positions = tl.load(Positions + b * positions_b + rows, mask=rows_here, other=0)
    elif CAUSAL:
        last = tl.minimum(tk, (tl.program_id(0) + 1) * BLOCK_M + offset)
    slots = tl.arange(0, TOP)[None, :]
    lowest = tl.full([BLOCK_M, TOP], -9223372036854775807, tl.int64)
    kept = lowest + slots
    for first in range(0, last, BLOCK_N):
        cols = first + tl.arange(0, BLOCK_N)
        t = _weights(
            rows, positions, rows_here, cols, cols < tk, b, h, heads, n, offset, scale, softcap,
            Q, q_b, q_h, q_t, K, k_b, k_h, k_t, Lse,
            Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
            Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
            Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b,
            Groups, groups_b, groups_h, LogWeights, GROUP, D, BLOCK_D, COUNT,
            SOFTCAP, BIAS, SHAPE, MASK, CAUSAL, HIDE, PRECISION, WIDE,
        )  # fmt: skip
        bits = t.to(tl.int32, bitcast=True)
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        code = (ordered.to(tl.int64) << 32) + (0x7FFFFFFF - cols[None, :]).to(tl.int64)
        code = tl.where(t <= 0.5 * NEG, -9223372036854775807, code)
        best = tl.max(code, 1)
        worst = tl.min(kept, 1)
        while tl.max((best > worst).to(tl.int32), 0) > 0:
            kept = tl.where((kept == worst[:, None]) & (best > worst)[:, None], best[:, None], kept)
            code = tl.where(code == best[:, None], -9223372036854775807, code)
            best = tl.max(code, 1)
            worst = tl.min(kept, 1)
    line = (b * heads + h).to(tl.int64) * n + rows
    tl.store(Keys + line[:, None] * TOP + slots, kept, mask=rows_here[:, None])
