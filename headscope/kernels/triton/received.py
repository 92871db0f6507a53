"""Column sums of the pattern from queries, keys and log-normalisers: what each key receives.

One program owns a block of keys and streams the queries that can see them, so that sums need no atomics and come out
the same every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from headscope.kernels.triton.device import LOG2E, dot, shaped, weighted


@triton.jit
def _collect(
    start, total, backward, k, cols, b, h, g, n, tk,
    Q, q_base, q_t, Lse, Gates, gates_b, gates_g, Cotangent, c_base, c_t,
    Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
    Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
    Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b,
    Groups, groups_b, groups_h, LogWeights, heads, scale, softcap, offset,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr,
    COUNT: tl.constexpr, GATED: tl.constexpr, GRADIENT: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr, SHAPE: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr,
    HIDE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """Add what one block of queries gives to a block of keys."""
    rows = start + tl.arange(0, BLOCK_M)
    rows_here = rows < n
    dims = tl.arange(0, BLOCK_D)
    queries = Q + q_base + rows[:, None].to(tl.int64) * q_t + dims[None, :]
    if CHECK:
        q = tl.load(queries, mask=rows_here[:, None] & (dims < D)[None, :], other=0.0)
    elif BLOCK_D != D:
        q = tl.load(queries, mask=(dims < D)[None, :], other=0.0)
    else:
        q = tl.load(queries)
    line = (b * heads + h).to(tl.int64) * n + rows
    lse = tl.load(Lse + line, mask=rows_here, other=0.0) * LOG2E
    s = dot(q, tl.trans(k), PRECISION, WIDE)
    here = rows_here[:, None] & (cols < tk)[None, :]
    t = shaped(
        s, cols[None, :], rows[:, None], here, rows_here[:, None], b, h,
        Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
        Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
        Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b, scale, softcap, offset,
        SOFTCAP, BIAS, SHAPE, MASK, CAUSAL, HIDE, CHECK,
    )  # fmt: skip
    t = t - lse[:, None]
    if COUNT > 0:
        t = weighted(
            t, cols[None, :], rows[:, None], rows_here[:, None], b, h, heads, n,
            Groups, groups_b, groups_h, LogWeights, COUNT,
        )  # fmt: skip
    p = tl.exp2(t)
    if GRADIENT:
        value_dims = tl.arange(0, BLOCK_DV)
        places = Cotangent + c_base + rows[:, None].to(tl.int64) * c_t + value_dims[None, :]
        cotangent = tl.load(places, mask=rows_here[:, None] & (value_dims < DV)[None, :], other=0.0)
        backward += dot(tl.trans(p).to(cotangent.dtype), cotangent, PRECISION, WIDE)
    elif GATED:
        gate = tl.load(Gates + b * gates_b + g * gates_g + rows, mask=rows_here, other=0.0)
        total += p * gate[:, None]
    else:
        total += p
    return total, backward


@triton.jit
def received(
    Q, q_b, q_h, q_t, K, k_b, k_h, k_t, V, v_b, v_h, v_t, Lse, Out, Gates, gates_b, gates_g,
    Cotangent, c_b, c_h, c_t,
    Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
    Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
    Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b,
    Groups, groups_b, groups_h, LogWeights,
    heads, groups, n, tk, offset, scale, softcap,
    GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, COUNT: tl.constexpr, GATED: tl.constexpr, GRADIENT: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr, SHAPE: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr,
    HIDE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Column sums (B, H, groups, Tk) of a block of keys; under ``GRADIENT`` Σ_q A · dA of each key instead.

    ``Gates`` (B, groups, Tq) weighs the queries; ``Cotangent`` is the gradient of the output.
    """
    block = tl.program_id(0)
    b = tl.program_id(1) // heads
    h = tl.program_id(1) % heads
    g = tl.program_id(2)
    cols = block * BLOCK_N + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    kv = (h // GROUP).to(tl.int64)
    keys = K + b.to(tl.int64) * k_b + kv * k_h + cols[:, None].to(tl.int64) * k_t + dims[None, :]
    k = tl.load(keys, mask=(cols < tk)[:, None] & (dims < D)[None, :], other=0.0)
    q_base = b.to(tl.int64) * q_b + h.to(tl.int64) * q_h
    c_base = b.to(tl.int64) * c_b + h.to(tl.int64) * c_h
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    backward = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)

    # Queries before ``first`` see none of these keys; those from ``sure`` to ``whole`` see them all.
    first = 0
    sure = 0
    whole = n // BLOCK_M * BLOCK_M
    if CAUSAL:
        first = tl.maximum(block * BLOCK_N - offset, 0) // BLOCK_M * BLOCK_M
        sure = tl.cdiv(tl.maximum((block + 1) * BLOCK_N - 1 - offset, 0), BLOCK_M) * BLOCK_M
    if (block + 1) * BLOCK_N > tk:
        whole = 0
    if MASK > 0:
        whole = 0
    end = tl.cdiv(n, BLOCK_M) * BLOCK_M
    sure = tl.minimum(tl.maximum(sure, first), end)
    whole = tl.maximum(whole, sure)
    for phase in tl.static_range(3):
        begin = first if phase == 0 else sure if phase == 1 else whole
        until = sure if phase == 0 else whole if phase == 1 else end
        for start in range(begin, until, BLOCK_M):
            total, backward = _collect(
                start, total, backward, k, cols, b, h, g, n, tk,
                Q, q_base, q_t, Lse, Gates, gates_b, gates_g, Cotangent, c_base, c_t,
                Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
                Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
                Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b,
                Groups, groups_b, groups_h, LogWeights, heads, scale, softcap, offset,
                D, DV, BLOCK_D, BLOCK_DV, BLOCK_M, COUNT, GATED, GRADIENT,
                SOFTCAP, BIAS, SHAPE, MASK, CAUSAL, HIDE, PRECISION, WIDE, phase != 1,
            )  # fmt: skip

    if GRADIENT:
        value_dims = tl.arange(0, BLOCK_DV)
        places = V + b.to(tl.int64) * v_b + kv * v_h + cols[:, None].to(tl.int64) * v_t + value_dims[None, :]
        v = tl.load(places, mask=(cols < tk)[:, None] & (value_dims < DV)[None, :], other=0.0)
        found = tl.sum(backward * v.to(tl.float32), 1)
    else:
        found = tl.sum(total, 0)
    place = ((b * heads + h) * groups + g).to(tl.int64) * tk + cols
    tl.store(Out + place, found, mask=cols < tk)
