"""Functions that run inside the kernels: dot products in every precision, and what shapes a logit."""

from __future__ import annotations

import triton
import triton.language as tl

NEG = tl.constexpr(-1.0e30)
"""Stands for −∞: finite, so that exp2(NEG) · NEG is 0 and not NaN."""

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, WIDE: tl.constexpr):
    """Multiply a and b into float32. The interpreter cannot multiply bfloat16: ``WIDE`` widens both first."""
    if WIDE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def tanh(x):
    """Return tanh by exp2, without overflow."""
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def shaped(
    s, cols, positions, here, rows_here, b, h,
    Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
    Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
    Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b,
    scale, softcap, offset,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr, SHAPE: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr,
    HIDE: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """Turn q·k into the logit in base 2, NEG where the query may not look.

    ``cols`` are keys and ``positions`` query positions, broadcasting to the shape of s; ``here`` says which pairs
    exist, ``rows_here`` which positions do. ``CHECK`` says whether keys may be beyond the end, in the future or masked.
    """
    if SOFTCAP:
        s = tanh(s * (scale / softcap)) * (softcap * LOG2E)
    else:
        s = s * (scale * LOG2E)
    if BIAS:
        places = Bias + b.to(tl.int64) * bias_b + h * bias_h + positions.to(tl.int64) * bias_m + cols * bias_n
        s += tl.load(places, mask=here, other=0.0).to(tl.float32) * LOG2E
    if SHAPE:
        keyed = tl.load(ShapeKeys + b * shape_keys_b + h * shape_keys_h + cols).to(tl.float32)
        concerned = tl.load(ShapeRows + b * shape_rows_b + positions, mask=rows_here, other=0)
        changed = s * tl.load(Shapes + h * 3)
        changed += keyed * (tl.load(Shapes + h * 3 + 1) * LOG2E + tl.load(Shapes + h * 3 + 2) * tl.abs(changed))
        s = tl.where(concerned != 0, changed, s)
    if CHECK:
        if MASK > 0:
            places = Mask + b.to(tl.int64) * mask_b + h * mask_h + positions.to(tl.int64) * mask_m + cols * mask_n
            seen = tl.load(places, mask=here, other=0)
            if MASK == 1:
                s = tl.where(seen != 0, s, NEG)
            else:
                s = tl.maximum(s + tl.maximum(seen.to(tl.float32), NEG) * LOG2E, NEG)
        if CAUSAL:
            s = tl.where(here & (positions + offset >= cols), s, NEG)
        else:
            s = tl.where(here, s, NEG)
    if HIDE:
        hidden = tl.load(Hidden + b * hidden_b + h * hidden_h + cols)
        cut = tl.load(HiddenRows + b * hidden_rows_b + h * hidden_rows_h + positions, mask=rows_here, other=0)
        s = tl.where((hidden != 0) & (cut != 0), NEG, s)
    return s


@triton.jit
def weighted(t, cols, at, rows_here, b, h, heads, n, Groups, groups_b, groups_h, LogWeights, COUNT: tl.constexpr):
    """Add to logits the logarithm in base 2 of the weight that the row ``at`` gives the group of each key."""
    group = tl.load(Groups + b * groups_b + h * groups_h + cols)
    table = LogWeights + ((b * heads + h).to(tl.int64) * n + at) * COUNT
    for g in tl.static_range(COUNT):
        t += tl.where(group == g, tl.load(table + g, mask=rows_here, other=0.0), 0.0)
    return tl.maximum(t, NEG)
