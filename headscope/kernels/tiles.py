"""Rectangles of one head's pattern from its log-normalisers: exp(logits − lse), whatever the length of the rows.

Blocks that fit the cache are made, pooled and forgotten; those that no query of theirs can see into are skipped. All
functions take one head of one sample, B = H = 1, and no edits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from headscope.kernels.dispatch import compute
from headscope.kernels.inputs import AttentionInputs, accumulation_dtype
from headscope.kernels.rows import Wants

Reduce = Literal["mean", "max"]

_SIDE = 512
"""Queries and keys of a block: its logits fit the cache of one core beside their operands."""


@torch.no_grad()
def normaliser(inp: AttentionInputs) -> Tensor:
    """Return the log-normaliser of each row (Tq,), learned sink included, as precisely as statistics are computed."""
    dtype = accumulation_dtype(inp.q.dtype)
    q, k = inp.q.to(dtype), inp.k.to(dtype)
    # The fused kernel takes calls whose values are as wide as their keys.
    lse = compute(replace(inp, q=q, k=k, v=k), Wants(lse=True)).lse
    assert lse is not None
    return lse[0, 0]


@torch.no_grad()
def whole(inp: AttentionInputs, rows: range) -> tuple[Tensor, Tensor, Tensor]:
    """Return attention (rows, Tk), log-normalisers (rows,) and logits (rows, Tk) of whole rows, in float64."""
    queries, keys = inp.q[0, 0, rows.start : rows.stop].double() * inp.scale, inp.k[0, 0].double()
    logits, cols = queries @ keys.t(), range(inp.tk)
    _shape(inp, logits, rows, cols, _visible(inp, rows, cols), None)
    weights, lse = logits.softmax(-1).nan_to_num_(0.0), logits.logsumexp(-1)
    if inp.sinks is not None:
        before, lse = lse, torch.logaddexp(lse, inp.sinks[0].to(lse))
        weights *= (before - lse).exp_()[:, None]
    return weights, lse, logits


@torch.no_grad()
def tile(
    inp: AttentionInputs,
    lse: Tensor,
    rows: range,
    cols: range,
    pool: tuple[int, int] | None = None,
    reduce: Reduce = "mean",
) -> Tensor:
    """Return queries ``rows`` × keys ``cols`` of one head of one sample, or blocks of them as one number each.

    Parameters
    ----------
    lse
        Log-normalisers (Tq,).
    rows, cols
        Positions, side by side.
    pool
        Height and width of blocks that become one number each; the last may be smaller.
    reduce
        How a block becomes a number.
    """
    dtype = accumulation_dtype(inp.q.dtype)
    height, width = pool or (1, 1)
    out = torch.zeros(-(-len(rows) // height), -(-len(cols) // width), dtype=dtype, device=inp.q.device)
    tall, wide = (max(1, _SIDE // size) * size for size in (height, width))
    queries, keys, shift = _operands(inp, lse, rows, cols, dtype)
    space = torch.empty(min(tall, len(rows)) * min(wide, len(cols)), dtype=dtype, device=inp.q.device)
    for top in range(0, len(rows), tall):
        block = rows[top : top + tall]
        for left in range(0, len(cols), wide):
            span = cols[left : left + wide]
            if inp.causal and span.start > block.stop - 1 + inp.offset:
                break
            visible = _visible(inp, block, span)
            if visible is not None and not bool(visible.any()):
                continue
            part = space[: len(block) * len(span)].view(len(block), len(span))
            torch.mm(queries[top : top + tall], keys[left : left + wide].t(), out=part)
            _shape(inp, part, block, span, visible, None if shift is None else shift[top : top + tall])
            target = out[top // height : -(-(top + tall) // height), left // width : -(-(left + wide) // width)]
            _pool(part, target, height, width, reduce)
    return out


def _operands(
    inp: AttentionInputs, lse: Tensor, rows: range, cols: range, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return queries and keys whose products are logits less the log-normaliser, which a soft-cap leaves for later."""
    queries = inp.q[0, 0, rows.start : rows.stop].to(dtype) * inp.scale
    keys = inp.k[0, 0, cols.start : cols.stop].to(dtype)
    shift = lse[rows.start : rows.stop].to(queries)[:, None]
    shift = torch.where(shift > -torch.inf, shift, torch.inf)  # a row that sees no key is zero
    if inp.softcap is not None:
        return queries, keys, shift
    return torch.cat([queries, -shift], dim=1), torch.cat([keys, torch.ones_like(keys[:, :1])], dim=1), None


def _part(extra: Tensor, rows: range, cols: range) -> Tensor:
    """Return the part of a mask or bias (1, 1, Tq or 1, Tk or 1)."""
    part = extra[0, 0]
    part = part if len(part) == 1 else part[rows.start : rows.stop]
    return part if part.shape[1] == 1 else part[:, cols.start : cols.stop]


def _visible(inp: AttentionInputs, rows: range, cols: range) -> Tensor | None:
    """Return what a boolean mask lets through, or None where it has no say."""
    if inp.mask is None or inp.mask.dtype != torch.bool:
        return None
    return _part(inp.mask, rows, cols)


def _shape(
    inp: AttentionInputs, found: Tensor, rows: range, cols: range, visible: Tensor | None, shift: Tensor | None
) -> None:
    """Turn products into logits in place, less ``shift``."""
    if inp.softcap is not None:
        found.div_(inp.softcap).tanh_().mul_(inp.softcap)
    if shift is not None:
        found.sub_(shift)
    if inp.bias is not None:
        found.add_(_part(inp.bias, rows, cols))
    if visible is not None:
        found.masked_fill_(~visible, -torch.inf)
    elif inp.mask is not None:
        found.add_(_part(inp.mask, rows, cols))
    if inp.causal:
        # Row i sees keys up to i + offset; before column ``first`` all rows see all.
        first = max(0, rows.start + inp.offset + 1 - cols.start)
        if first < len(cols):
            keys = torch.arange(cols.start + first, cols.stop, device=found.device)
            limits = torch.arange(rows.start, rows.stop, device=found.device)[:, None] + inp.offset
            found[:, first:].masked_fill_(keys > limits, -torch.inf)


def _pool(found: Tensor, target: Tensor, height: int, width: int, reduce: Reduce) -> None:
    """Put the attention that logarithms stand for into ``target``, pooled."""
    if height == width == 1:
        torch.exp(found, out=target)
        return
    if reduce == "max":
        target.copy_(_blocks(found, height, width, torch.amax).exp_())
        return
    sums = _blocks(found.exp_(), height, width, torch.sum)
    tall = torch.full((len(sums), 1), float(height)).to(sums)
    tall[-1] = len(found) - height * (len(sums) - 1)
    wide = torch.full((1, sums.shape[1]), float(width)).to(sums)
    wide[:, -1] = found.shape[1] - width * (sums.shape[1] - 1)
    target.copy_(sums / tall / wide)


def _blocks(x: Tensor, height: int, width: int, reduce: Callable[..., Tensor]) -> Tensor:
    """Reduce blocks of a matrix, those at its ends as they are."""
    rows = len(x) // height * height
    parts = [reduce(x[:rows].view(-1, height, x.shape[1]), 1)] if rows else []
    if rows < len(x):
        parts.append(reduce(x[rows:], 0, keepdim=True))
    x = parts[0] if len(parts) == 1 else torch.cat(parts)
    cols = x.shape[1] // width * width
    parts = [reduce(x[:, :cols].reshape(len(x), -1, width), 2)] if cols else []
    if cols < x.shape[1]:
        parts.append(reduce(x[:, cols:], 1, keepdim=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
