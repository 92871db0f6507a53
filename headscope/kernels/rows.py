"""Exact statistics of attention in one streamed sweep over blocks of whole rows.

A block of R query rows against all the keys they can see is a tile of R × Tk logits that fits the cache. One sweep
makes the tile, normalises it, takes from it whatever was asked, multiplies it with the values, and forgets it: memory
is O(R·Tk), never Tq × Tk. Because a tile holds whole rows, even column sums need no second pass. On a CPU with a
C compiler the softmax of a tile is ``rows.c``; elsewhere it is plain PyTorch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional

from headscope.kernels import compiled
from headscope.kernels.compiled import library
from headscope.kernels.edits import Hide, Reweight, Shape
from headscope.kernels.inputs import AttentionInputs, accumulation_dtype, rectangle

_TILE_BYTES = 3 << 19
"""Size of a tile that the shared cache of common CPUs holds beside its operands."""


@dataclass(frozen=True)
class Wants:
    """What a sweep shall return; whatever is not asked for is not computed.

    Parameters
    ----------
    out, lse, entropy
        Attention output, log-normaliser, entropy in nats.
    top
        How many of the largest weights of each row to return.
    received
        Column sums.
    groups
        Query groups (B, N, rows) of weights for column sums by group; also used to leave padding queries out.
    project, indicator
        Per-key vectors (B, Tk, C): the sweep returns attention @ project. ``indicator`` says that they hold nothing but
        zeros and ones, as regions of keys do.
    lookup
        Key positions (B, rows, m), −1 for none: the sweep returns the attention at those keys.
    pooled_max
        (query bin width, key bin width) of a max-pooled overview.
    rows
        The rows themselves.
    """

    out: bool = False
    lse: bool = False
    entropy: bool = False
    top: int = 0
    received: bool = False
    groups: Tensor | None = None
    project: Tensor | None = None
    lookup: Tensor | None = None
    pooled_max: tuple[int, int] | None = None
    rows: bool = False
    indicator: bool = False

    def any(self) -> bool:
        """Whether anything is asked."""
        return any(
            getattr(self, f.name) not in (None, False, 0) for f in fields(self) if f.name not in _TENSORS
        ) or any(getattr(self, name) is not None for name in _TENSORS)


_TENSORS = ("groups", "project", "lookup")


@dataclass
class Stats:
    """Results of a sweep, (B, H, …) each; None where not asked for."""

    out: Tensor | None = None
    lse: Tensor | None = None
    entropy: Tensor | None = None
    top_keys: Tensor | None = None
    top_weights: Tensor | None = None
    received: Tensor | None = None
    grouped: Tensor | None = None
    project: Tensor | None = None
    lookup: Tensor | None = None
    pooled_max: Tensor | None = None
    rows: Tensor | None = None


def sweep(inp: AttentionInputs, wants: Wants, queries: Tensor | None = None) -> Stats:
    """Compute everything that ``wants`` names in one pass.

    Parameters
    ----------
    inp
        One call of attention.
    wants
        The statistics.
    queries
        Query positions (B, n) to restrict the sweep to; all by default.

    Returns
    -------
    Stats
        Tensors in float32 (float64 inputs: float64), rows in the order of ``queries``.
    """
    dtype = accumulation_dtype(inp.q.dtype)
    working = replace(inp, q=inp.q.to(dtype), k=inp.k.to(dtype), v=inp.v.to(dtype))
    stats = _allocate(working, wants, inp.tq if queries is None else queries.shape[1])
    rows = inp.tq if queries is None else queries.shape[1]
    # A few rows of all heads are one tile; many rows of one key head fill the cache alone.
    together = inp.heads * rows * inp.tk * working.q.element_size() <= _TILE_BYTES
    parts = [(working, slice(None))] if together or inp.kv_heads == 1 else list(_by_kv_head(working))
    for sample in range(inp.batch):
        for part, heads in parts:
            _sweep_group(part, wants, None if queries is None else queries[sample], sample, heads, stats)
    if stats.out is not None:
        stats.out = stats.out.to(inp.v.dtype)
    return stats


def _by_kv_head(inp: AttentionInputs) -> Iterator[tuple[AttentionInputs, slice]]:
    for kv_head in range(inp.kv_heads):
        yield inp.with_kv_head(kv_head), slice(kv_head * inp.group, (kv_head + 1) * inp.group)


def _allocate(inp: AttentionInputs, wants: Wants, n: int) -> Stats:
    def new(*shape: int, dtype: torch.dtype = inp.q.dtype, fill: float = 0) -> Tensor:
        return torch.full((inp.batch, inp.heads, *shape), fill, dtype=dtype, device=inp.q.device)

    stats = Stats()
    if wants.out:
        stats.out = torch.empty(inp.batch, n, inp.heads, inp.v.shape[-1], dtype=inp.v.dtype, device=inp.v.device)
        stats.out = stats.out.transpose(1, 2)  # laid out as the output projection reads it
    if wants.lse:
        stats.lse = new(n)
    if wants.entropy:
        stats.entropy = new(n)
    if wants.top:
        stats.top_keys, stats.top_weights = new(n, wants.top, dtype=torch.int64, fill=-1), new(n, wants.top)
    if wants.received:
        stats.received = new(inp.tk, dtype=torch.float64)
    if wants.groups is not None:
        stats.grouped = new(wants.groups.shape[1], inp.tk, dtype=torch.float64)
    if wants.project is not None:
        stats.project = new(n, wants.project.shape[-1])
    if wants.lookup is not None:
        stats.lookup = new(n, wants.lookup.shape[-1])
    if wants.pooled_max is not None:
        height, width = wants.pooled_max
        stats.pooled_max = new(-(-n // height), -(-inp.tk // width))
    if wants.rows:
        stats.rows = new(n, inp.tk)
    return stats


def _blocks(inp: AttentionInputs, n: int) -> Iterator[slice]:
    size = _TILE_BYTES // (inp.heads * inp.tk * inp.q.element_size())
    size = max(8, min(128, size))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _sweep_group(
    inp: AttentionInputs, wants: Wants, queries: Tensor | None, sample: int, heads: slice, stats: Stats
) -> None:
    """Sweep rows of some query heads, most often of those that share one key head, for one sample."""
    keys = inp.k[sample]
    right = _right_hand(inp, wants, sample)
    scaled = inp.q[sample] * inp.scale
    n = inp.tq if queries is None else len(queries)
    positions = torch.arange(n, device=scaled.device) if queries is None else queries
    limits = (positions + inp.offset + 1).clamp(0, inp.tk) if inp.causal else torch.full_like(positions, inp.tk)
    space = torch.empty(0, dtype=scaled.dtype, device=scaled.device)
    for block in _blocks(inp, n):
        picked: Tensor | slice = block if queries is None else queries[block]
        limit = limits[block]
        seen = int(limit.max())
        limit = limit.repeat(inp.heads)
        rows = scaled[:, picked].reshape(-1, scaled.shape[-1])
        if space.numel() < len(rows) * seen:
            space = scaled.new_empty(len(rows) * inp.tk)
        tile = space[: len(rows) * seen].view(len(rows), seen)
        if inp.kv_heads == 1:
            torch.mm(rows, keys[0, :seen].t(), out=tile)
        else:
            halves = rows.view(inp.kv_heads, -1, rows.shape[-1]), keys[:, :seen].transpose(1, 2)
            torch.bmm(*halves, out=tile.view(inp.kv_heads, -1, seen))
        shaped = tile.view(inp.heads, -1, seen)
        _shape_logits(inp, shaped, sample, picked, limit)
        other = _normalise(inp, wants, tile, limit, stats, (sample, heads, block))
        _reweight(inp, wants, shaped, sample, picked, stats, (sample, heads, block), other)
        _collect(wants, shaped, right, stats, sample, heads, block)


def _right_hand(inp: AttentionInputs, wants: Wants, sample: int) -> Tensor | None:
    parts = [inp.v[sample]] if wants.out else []
    if wants.project is not None:
        parts.append(wants.project[sample].to(inp.q.dtype).expand(inp.kv_heads, -1, -1))
    return torch.cat(parts, dim=-1) if len(parts) > 1 else (parts[0] if parts else None)


def _shape_logits(inp: AttentionInputs, tile: Tensor, sample: int, picked: Tensor | slice, limit: Tensor) -> None:
    """Apply soft-cap, bias, mask and edits to the logits of a tile (heads, rows, keys), in place.

    ``limit`` (heads · rows,) is how many keys each row can see.
    """
    seen = tile.shape[-1]
    if inp.softcap is not None:
        tile.div_(inp.softcap).tanh_().mul_(inp.softcap)
    if inp.bias is not None:
        tile.add_(rectangle(inp.bias, sample, picked, seen))
    for edit in inp.edits:
        if isinstance(edit, Shape):
            edit.apply_(tile, sample, picked)
    if inp.mask is not None:
        mask = rectangle(inp.mask, sample, picked, seen)
        tile.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else tile.add_(mask)
    for edit in inp.edits:
        if isinstance(edit, Hide):
            _hide(edit, tile, sample, picked, limit)


def _hide(edit: Hide, tile: Tensor, sample: int, picked: Tensor | slice, limit: Tensor) -> None:
    kernel = _kernel(tile)
    if kernel is not None:
        compiled.hide(kernel, tile, limit, edit.keys[sample], _edited(edit, tile, sample, picked))
        return
    future = torch.arange(tile.shape[-1], device=tile.device) >= limit.view(*tile.shape[:2], 1)
    tile.masked_fill_(edit.cut((tile > -torch.inf) & ~future, sample, picked), -torch.inf)


def _edited(edit: Hide | Reweight, tile: Tensor, sample: int, picked: Tensor | slice) -> Tensor | None:
    """Return which rows (heads, rows) of a tile an edit changes, or None for all."""
    if edit.rows is None and bool(edit.heads.all()):
        return None
    return edit.concerned(sample, picked)[..., 0].expand(tile.shape[:2]).contiguous()


def _kernel(tile: Tensor) -> ctypes.CDLL | None:
    """Return the compiled kernels where they apply to a tile."""
    return library() if tile.device.type == "cpu" and tile.dtype == torch.float32 else None


def _normalise(
    inp: AttentionInputs, wants: Wants, tile: Tensor, limit: Tensor, stats: Stats, place: tuple[int, slice, slice]
) -> Tensor | None:
    """Turn logits (heads · rows, keys) into attention in place, and take the row statistics on the way.

    Returns what learned sinks take of each row (heads · rows,), if there are any.
    """
    heads = inp.heads
    sink = None if inp.sinks is None else inp.sinks.to(tile.dtype).repeat_interleave(len(tile) // heads).contiguous()
    kernel = _kernel(tile)
    if kernel is None:
        found = _softmax(tile, limit, sink, entropy=wants.entropy, best=wants.top == 1)
    else:
        found = _softmax_compiled(kernel, tile, limit, sink, entropy=wants.entropy, best=wants.top == 1)
    lse, entropy, best, weight = (None if x is None else x.view(heads, -1) for x in found)
    sample, at, block = place
    if stats.lse is not None and lse is not None:
        stats.lse[sample, at, block] = lse
    if stats.entropy is not None and entropy is not None:
        stats.entropy[sample, at, block] = entropy
    if wants.top == 1 and stats.top_keys is not None and stats.top_weights is not None:
        assert best is not None
        assert weight is not None
        stats.top_keys[sample, at, block, 0] = best
        stats.top_weights[sample, at, block, 0] = weight
    return None if sink is None else (sink - found[0]).exp_()


def _reweight(
    inp: AttentionInputs,
    wants: Wants,
    tile: Tensor,
    sample: int,
    picked: Tensor | slice,
    stats: Stats,
    place: tuple[int, slice, slice],
    other: Tensor | None,
) -> None:
    """Change the weights of normalised attention (heads, rows, keys) in place; statistics are of what it becomes.

    ``other`` (heads · rows,) is what learned sinks take.
    """
    changes = [edit for edit in inp.edits if isinstance(edit, Reweight)]
    if not changes:
        return
    kernel = _kernel(tile)
    for edit in changes:
        if kernel is None or edit.count >= compiled.GROUPS:
            tile.mul_(edit.factors(tile, sample, picked, leaky=inp.leaky))
        else:
            edited = _edited(edit, tile, sample, picked)
            compiled.reweigh(kernel, tile, edit.groups[sample], edit.code, edit.count + 1, edited, other)
    if stats.entropy is not None:
        stats.entropy[place] = torch.special.entr(tile).sum(-1)
    if wants.top == 1 and stats.top_keys is not None and stats.top_weights is not None:
        weight, key = tile.max(dim=-1)
        stats.top_keys[place][..., 0] = torch.where(weight > 0, key, -1)
        stats.top_weights[place][..., 0] = weight


_Found = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def _softmax_compiled(
    kernel: ctypes.CDLL, tile: Tensor, limit: Tensor, sink: Tensor | None, *, entropy: bool, best: bool
) -> _Found:
    rows, seen = tile.shape
    lse = tile.new_empty(rows)
    ent = tile.new_empty(rows) if entropy else None
    key = torch.empty(rows, dtype=torch.int64) if best else None
    weight = tile.new_empty(rows) if best else None
    kernel.headscope_rows(
        tile.data_ptr(), rows, seen, seen, limit.data_ptr(), _address(sink), lse.data_ptr(),
        _address(ent), _address(key), _address(weight), torch.get_num_threads(),
    )  # fmt: skip
    return lse, ent, key, weight


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _softmax(tile: Tensor, limit: Tensor, sink: Tensor | None, *, entropy: bool, best: bool) -> _Found:
    seen = tile.shape[1]
    if int(limit.min()) < seen:
        tile.masked_fill_(torch.arange(seen, device=tile.device) >= limit[:, None], -torch.inf)
    top, at = tile.max(dim=-1)
    key = torch.where(top > -torch.inf, at, -1) if best else None
    shift = top if sink is None else torch.maximum(top, sink)
    shift = torch.where(shift > -torch.inf, shift, torch.zeros_like(shift))
    # Divided by its own sum, not by exp(lse): what a learned sink takes is 1 − the sum of the row, to the last digit.
    total = tile.sub_(shift[:, None]).exp_().sum(-1)
    if sink is not None:
        total = total + (sink - shift).exp()
    tile.div_(torch.where(total > 0, total, torch.ones_like(total))[:, None])
    lse = shift + total.log()
    ent = torch.special.entr(tile).sum(-1) if entropy else None
    weight = None
    if key is not None:
        weight = tile.gather(-1, key.clamp(min=0)[:, None])[:, 0] * (key >= 0)
    return lse, ent, key, weight


def _collect(
    wants: Wants, tile: Tensor, right: Tensor | None, stats: Stats, sample: int, heads: slice, block: slice
) -> None:
    """Take from a normalised tile (heads, rows, keys) everything that is linear in it, or a selection of it."""
    seen = tile.shape[-1]
    if right is not None:
        stacked = tile.view(len(right), -1, seen)
        product = stacked[0] @ right[0, :seen] if len(right) == 1 else stacked @ right[:, :seen]
        product = product.view(*tile.shape[:2], -1)
        width = 0
        if stats.out is not None:
            width = stats.out.shape[-1]
            stats.out[sample, heads, block] = product[..., :width].to(stats.out.dtype)
        if stats.project is not None:
            stats.project[sample, heads, block] = product[..., width:]
    if stats.received is not None:
        _add_columns(tile, stats.received[sample, heads])
    if stats.grouped is not None and wants.groups is not None:
        weights = wants.groups[sample, :, block].to(tile.dtype)
        stats.grouped[sample, heads, :, :seen] += weights @ tile
    if wants.top > 1 and stats.top_keys is not None and stats.top_weights is not None:
        n = min(wants.top, seen)
        weight, key = tile.topk(n, dim=-1)
        stats.top_weights[sample, heads, block, :n] = weight
        stats.top_keys[sample, heads, block, :n] = torch.where(weight > 0, key, -1)
    if stats.lookup is not None and wants.lookup is not None:
        key = wants.lookup[sample, block].expand(len(tile), -1, -1)
        there = (key >= 0) & (key < seen)
        stats.lookup[sample, heads, block] = tile.gather(-1, torch.where(there, key, 0)) * there
    if stats.pooled_max is not None and wants.pooled_max is not None:
        _add_maxima(tile, stats.pooled_max[sample, heads], wants.pooled_max, block.start)
    if stats.rows is not None:
        stats.rows[sample, heads, block, :seen] = tile


def _add_columns(tile: Tensor, received: Tensor) -> None:
    heads, rows, seen = tile.shape
    kernel = _kernel(tile)
    if kernel is None:
        received[:, :seen] += tile.sum(1)
    else:
        kernel.headscope_columns(
            tile.data_ptr(), heads * rows, seen, seen, heads, received.data_ptr(), received.stride(0),
            torch.get_num_threads(),
        )  # fmt: skip


def _add_maxima(tile: Tensor, pooled: Tensor, widths: tuple[int, int], start: int) -> None:
    height, width = widths
    seen = tile.shape[-1]
    bins = -(-seen // width)
    columns = functional.pad(tile, (0, bins * width - seen)).unflatten(-1, (bins, width)).amax(-1)
    for row in range(tile.shape[1]):
        target = pooled[:, (start + row) // height, :bins]
        torch.maximum(target, columns[:, row], out=target)
