"""The fused forward: online-softmax attention that emits, on the way, whatever else was asked of it.

One program holds a block of queries of one head and streams the keys. What is not asked is not compiled in. The same
kernel serves decoding (keys split among programs, partial results merged by ``merge``), and the second pass under
edits, where the log-normaliser is known and each row weighs groups of keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from headscope.kernels.triton.device import LOG2E, NEG, dot, shaped, weighted

SHIFT = tl.constexpr(10.0)
"""In half precision weights relative to the row's maximum run up to 2^10, so that small ones stay normal numbers."""


@triton.jit
def _attend(
    start, q, m, l, u, acc, other, l_other, sums, best, best_key,
    positions, at, rows_here, b, h, n, limit,
    K, k_base, k_t, V, v_base, v_t, X, x_base, x_n, Kinds, kinds_base,
    Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
    Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
    Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b,
    Groups, groups_b, groups_h, LogWeights, heads, scale, softcap, offset,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr, CHANNELS: tl.constexpr, COUNT: tl.constexpr,
    OUT: tl.constexpr, ENTROPY: tl.constexpr, TOP: tl.constexpr, PAIR: tl.constexpr, GIVEN: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr, SHAPE: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr,
    HIDE: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """Take one block of keys into the running results of a block of queries."""
    cols = start + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    keys = K + k_base + cols[:, None].to(tl.int64) * k_t + dims[None, :]
    if CHECK:
        k = tl.load(keys, mask=(cols < limit)[:, None] & (dims < D)[None, :], other=0.0)
    elif BLOCK_D != D:
        k = tl.load(keys, mask=(dims < D)[None, :], other=0.0)
    else:
        k = tl.load(keys)
    s = dot(q, tl.trans(k), PRECISION, WIDE)
    here = rows_here[:, None] & (cols < limit)[None, :]
    t = shaped(
        s, cols[None, :], positions[:, None], here, rows_here[:, None], b, h,
        Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
        Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
        Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b, scale, softcap, offset,
        SOFTCAP, BIAS, SHAPE, MASK, CAUSAL, HIDE, CHECK,
    )  # fmt: skip
    if GIVEN:
        t = t - m[:, None]
        if COUNT > 0:
            t = weighted(
                t, cols[None, :], at[:, None], rows_here[:, None], b, h, heads, n,
                Groups, groups_b, groups_h, LogWeights, COUNT,
            )  # fmt: skip
    if TOP:
        if HALF:  # the key rides in the lowest bits of its logit, so that one maximum finds both
            tags = (BLOCK_N - 1 - tl.arange(0, BLOCK_N))[None, :]
            tagged = ((t.to(tl.int32, bitcast=True) & -BLOCK_N) | tags).to(tl.float32, bitcast=True)
            top = tl.max(tagged, 1)
            top_key = start + (BLOCK_N - 1) - (top.to(tl.int32, bitcast=True) & (BLOCK_N - 1))
        else:
            top, where = tl.max(t, 1, return_indices=True, return_indices_tie_break_left=True)
            top_key = start + where
        better = top > best
        best = tl.where(better, top, best)
        best_key = tl.where(better, top_key, best_key)
    if GIVEN:
        p = tl.exp2(t)
        if ENTROPY:
            u += tl.sum(p * t, 1)
    else:
        if TOP:
            peak = tl.maximum(m, top)
        else:
            peak = tl.maximum(m, tl.max(t, 1))
        if CHECK or HIDE:  # a row that has seen no key yet
            level = tl.where(peak <= 0.5 * NEG, 0.0, peak)
        else:
            level = peak
        if HALF:
            t = t - (level - SHIFT)[:, None]
        else:
            t = t - level[:, None]
        p = tl.exp2(t)
        fade = tl.exp2(m - level)
        if ENTROPY:
            u = (u + (m - level) * l) * fade + tl.sum(p * t, 1)
        m = peak
        l = l * fade + tl.sum(p, 1)
        acc = acc * fade[:, None]
        if PAIR:
            other = other * fade[:, None]
            l_other = l_other * fade
        if CHANNELS > 0:
            sums = sums * fade[:, None]
    if OUT:
        value_dims = tl.arange(0, BLOCK_DV)
        values = V + v_base + cols[:, None].to(tl.int64) * v_t + value_dims[None, :]
        if CHECK:
            v = tl.load(values, mask=(cols < limit)[:, None] & (value_dims < DV)[None, :], other=0.0)
        elif BLOCK_DV != DV:
            v = tl.load(values, mask=(value_dims < DV)[None, :], other=0.0)
        else:
            v = tl.load(values)
        if PAIR:
            group = tl.load(Groups + b * groups_b + h * groups_h + cols)
            p_other = tl.where((group == 1)[None, :], p, 0.0)
            l_other += tl.sum(p_other, 1)
            other += dot(p_other.to(v.dtype), v, PRECISION, WIDE)
            acc += dot((p - p_other).to(v.dtype), v, PRECISION, WIDE)
        else:
            acc += dot(p.to(v.dtype), v, PRECISION, WIDE)
    if CHANNELS > 0:
        # Most blocks lie inside or outside of every region: one row of X and the sum of the weights say it all.
        channels = tl.arange(0, CHANNELS)
        if tl.load(Kinds + kinds_base + start // BLOCK_N) != 0:
            row = tl.load(X + x_base + start.to(tl.int64) * x_n + channels).to(tl.float32)
            sums += tl.sum(p, 1)[:, None] * row[None, :]
        else:
            x = tl.load(X + x_base + cols[:, None].to(tl.int64) * x_n + channels[None, :])
            if GIVEN and HALF:
                sums += dot((p * 1024.0).to(x.dtype), x, PRECISION, WIDE) * 0.0009765625
            else:
                sums += dot(p.to(x.dtype), x, PRECISION, WIDE)
    return m, l, u, acc, other, l_other, sums, best, best_key


@triton.jit
def forward(
    Q, q_b, q_h, q_t, K, k_b, k_h, k_t, V, v_b, v_h, v_t, X, x_b, x_h, x_n, Kinds, kinds_b, kinds_h,
    Out, out_z, out_b, out_h, out_t, Other, Share, ShareOther, Lse, Entropy, Sums, TopKey, TopLogit, TopWeight,
    Positions, positions_b,
    Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n, Sinks, sinks_h, sinks_m,
    Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
    Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b,
    Groups, groups_b, groups_h, LogWeights, GivenLse,
    FullCount, FullIndex, PartCount, PartIndex, lists_b, lists_h, lists_m,
    batch, heads, n, tk, span, offset, scale, softcap,
    GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CHANNELS: tl.constexpr, COUNT: tl.constexpr,
    OUT: tl.constexpr, LSE: tl.constexpr, ENTROPY: tl.constexpr, TOP: tl.constexpr, PAIR: tl.constexpr,
    GIVEN: tl.constexpr, SOME: tl.constexpr, SPLIT: tl.constexpr, LISTED: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr, SHAPE: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr,
    HIDE: tl.constexpr, SINKS: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Attention of BLOCK_M queries of one head over all keys, or over one span of them (``SPLIT``)."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    b = tl.program_id(1) // heads
    h = tl.program_id(1) % heads
    z = tl.program_id(2)
    at = block * BLOCK_M + tl.arange(0, BLOCK_M)
    rows_here = at < n
    positions = at
    if SOME:
        positions = tl.load(Positions + b * positions_b + at, mask=rows_here, other=0)
    dims = tl.arange(0, BLOCK_D)
    queries = Q + b.to(tl.int64) * q_b + h.to(tl.int64) * q_h + at[:, None].to(tl.int64) * q_t + dims[None, :]
    q = tl.load(queries, mask=rows_here[:, None] & (dims < D)[None, :], other=0.0)
    k_base = b.to(tl.int64) * k_b + (h // GROUP).to(tl.int64) * k_h
    v_base = b.to(tl.int64) * v_b + (h // GROUP).to(tl.int64) * v_h
    x_base = b.to(tl.int64) * x_b + h.to(tl.int64) * x_h
    kinds_base = b * kinds_b + h * kinds_h

    # Keys that no row of the block can see are never visited; those that all rows see need no check.
    low = 0
    limit = tk
    if SPLIT:
        low = z * span
        limit = tl.minimum(tk, low + span)
    last = limit
    sure = (limit - low) // BLOCK_N * BLOCK_N + low
    if CAUSAL:
        if SOME:
            last = tl.minimum(limit, tl.max(positions, 0) + offset + 1)
            sure = low
        else:
            last = tl.minimum(limit, (block + 1) * BLOCK_M + offset)
            seen = tl.maximum(block * BLOCK_M + offset + 1 - low, 0) // BLOCK_N * BLOCK_N + low
            sure = tl.minimum(sure, seen)
    if MASK > 0:
        sure = low
    lists = 0
    if LISTED:
        lists = b * lists_b + h * lists_h + block

    m = tl.full([BLOCK_M], NEG, tl.float32)
    if SINKS and not SPLIT:  # of a row in parts, ``merge`` adds it
        sink = tl.load(Sinks + h * sinks_h + at * sinks_m, mask=rows_here, other=0.0).to(tl.float32) * LOG2E
        m = sink
    if GIVEN:
        m = tl.load(GivenLse + (b * heads + h).to(tl.int64) * n + at, mask=rows_here, other=0.0) * LOG2E
    l = tl.zeros([BLOCK_M], tl.float32)
    u = tl.zeros([BLOCK_M], tl.float32)
    l_other = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    other = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    sums = tl.zeros([BLOCK_M, CHANNELS if CHANNELS > 0 else 1], tl.float32)
    best = tl.full([BLOCK_M], NEG, tl.float32)
    best_key = tl.full([BLOCK_M], -1, tl.int32)

    for check in tl.static_range(2):
        if LISTED:
            first = 0
            end = tl.load((PartCount if check else FullCount) + lists)
        else:
            first = (sure if check else low) // BLOCK_N
            end = tl.cdiv(last, BLOCK_N) if check else sure // BLOCK_N
        for i in range(first, end):
            j = i
            if LISTED:
                j = tl.load((PartIndex if check else FullIndex) + lists * lists_m + i)
            m, l, u, acc, other, l_other, sums, best, best_key = _attend(
                j * BLOCK_N, q, m, l, u, acc, other, l_other, sums, best, best_key,
                positions, at, rows_here, b, h, n, limit,
                K, k_base, k_t, V, v_base, v_t, X, x_base, x_n, Kinds, kinds_base,
                Mask, mask_b, mask_h, mask_m, mask_n, Bias, bias_b, bias_h, bias_m, bias_n,
                Hidden, hidden_b, hidden_h, HiddenRows, hidden_rows_b, hidden_rows_h,
                Shapes, ShapeKeys, shape_keys_b, shape_keys_h, ShapeRows, shape_rows_b,
                Groups, groups_b, groups_h, LogWeights, heads, scale, softcap, offset,
                D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, CHANNELS, COUNT, OUT, ENTROPY, TOP, PAIR, GIVEN,
                SOFTCAP, BIAS, SHAPE, MASK, CAUSAL, HIDE, HALF, PRECISION, WIDE, check == 1,
            )  # fmt: skip

    line = ((z * batch + b) * heads + h).to(tl.int64) * n + at
    inverse = tl.full([BLOCK_M], 1.0, tl.float32)
    if not GIVEN:
        level = tl.where(m <= 0.5 * NEG, 0.0, m)
        if HALF:
            level -= SHIFT
        total = l
        if SINKS and not SPLIT:
            total += tl.exp2(sink - level)
        inverse = tl.where(total > 0, 1.0 / total, 0.0)
        logarithm = tl.log2(tl.where(total > 0, total, 1.0))
        if LSE:
            lse = tl.where(total > 0, (level + logarithm) / LOG2E, -float("inf"))
            tl.store(Lse + line, lse, mask=rows_here)
        if ENTROPY:
            entropy = (l * logarithm - u) * inverse / LOG2E
            tl.store(Entropy + line, tl.maximum(entropy, 0.0), mask=rows_here)
        if PAIR:
            tl.store(Share + line, (l - l_other) * inverse, mask=rows_here)
            tl.store(ShareOther + line, l_other * inverse, mask=rows_here)
    elif ENTROPY:
        tl.store(Entropy + line, tl.maximum(-u / LOG2E, 0.0), mask=rows_here)
    if TOP:
        tl.store(TopKey + line, tl.where(best <= 0.5 * NEG, -1, best_key), mask=rows_here)
        if SPLIT:
            tl.store(TopLogit + line, best, mask=rows_here)
        elif not HALF:
            weight = tl.exp2(best) if GIVEN else tl.exp2(best - level) * inverse
            tl.store(TopWeight + line, weight, mask=rows_here)
    if CHANNELS > 0:
        channels = tl.arange(0, CHANNELS)
        tl.store(Sums + line[:, None] * CHANNELS + channels[None, :], sums * inverse[:, None], mask=rows_here[:, None])
    if OUT:
        value_dims = tl.arange(0, BLOCK_DV)
        there = rows_here[:, None] & (value_dims < DV)[None, :]
        if PAIR:
            places = line[:, None] * DV + value_dims[None, :]
            tl.store(Out + places, acc * inverse[:, None], mask=there)
            tl.store(Other + places, other * inverse[:, None], mask=there)
        else:
            base = Out + z.to(tl.int64) * out_z + b.to(tl.int64) * out_b + h.to(tl.int64) * out_h
            places = base + at[:, None].to(tl.int64) * out_t + value_dims[None, :]
            tl.store(places, (acc * inverse[:, None]).to(Out.dtype.element_ty), mask=there)


@triton.jit
def merge(
    PartOut, PartLse, PartEntropy, PartSums, PartKey, PartLogit, Sinks,
    Out, Lse, Entropy, Sums, TopKey, TopWeight, lines, parts,
    DV: tl.constexpr, BLOCK_DV: tl.constexpr, CHANNELS: tl.constexpr, PARTS: tl.constexpr,
    OUT: tl.constexpr, LSE: tl.constexpr, ENTROPY: tl.constexpr, TOP: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Merge what ``parts`` spans of keys gave for one query; an attention row is a mixture of its spans."""
    line = tl.program_id(0).to(tl.int64)
    z = tl.arange(0, PARTS)
    there = z < parts
    place = z * lines + line
    lse = tl.load(PartLse + place, mask=there, other=-float("inf"))
    level = tl.max(lse, 0)
    if SINKS:
        sink = tl.load(Sinks + line)
        level = tl.maximum(level, sink)
    level = tl.where(level == -float("inf"), 0.0, level)
    weight = tl.exp2((lse - level) * LOG2E)
    total = tl.sum(weight, 0)
    if SINKS:
        total += tl.exp2((sink - level) * LOG2E)
    share = weight / tl.where(total > 0, total, 1.0)
    if LSE:
        found = level + tl.log2(tl.where(total > 0, total, 1.0)) / LOG2E
        tl.store(Lse + line, tl.where(total > 0, found, -float("inf")))
    if ENTROPY:
        own = tl.load(PartEntropy + place, mask=there, other=0.0)
        between = tl.where(share > 0, share * tl.log2(tl.where(share > 0, share, 1.0)), 0.0) / LOG2E
        tl.store(Entropy + line, tl.sum(share * own - between, 0))
    if TOP:
        logit = tl.load(PartLogit + place, mask=there, other=2.0 * NEG)
        top, where = tl.max(logit, 0, return_indices=True, return_indices_tie_break_left=True)
        key = tl.load(PartKey + where * lines + line)
        tl.store(TopKey + line, tl.where(top <= 0.5 * NEG, -1, key))
        tl.store(TopWeight + line, tl.exp2(top - level * LOG2E) / tl.where(total > 0, total, 1.0))
    if CHANNELS > 0:
        channels = tl.arange(0, CHANNELS)
        sums = tl.load(PartSums + place[:, None] * CHANNELS + channels[None, :], mask=there[:, None], other=0.0)
        tl.store(Sums + line * CHANNELS + channels, tl.sum(sums * share[:, None], 0))
    if OUT:
        dims = tl.arange(0, BLOCK_DV)
        out = tl.load(
            PartOut + place[:, None] * DV + dims[None, :], mask=there[:, None] & (dims < DV)[None, :], other=0.0
        )
        tl.store(Out + line * DV + dims, tl.sum(out * share[:, None], 0).to(Out.dtype.element_ty), mask=dims < DV)
