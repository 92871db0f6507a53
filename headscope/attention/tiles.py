"""Any rectangle of any head's pattern, computed exactly from stored queries, keys and log-normalisers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from headscope.errors import RequestError
from headscope.kernels import tiles
from headscope.kernels.dispatch import chosen, compute, fused_tile
from headscope.kernels.inputs import AttentionInputs, accumulation_dtype
from headscope.kernels.rows import Wants

_EXACT, _EXACT_POOLED = 1 << 21, 1 << 18
"""Cells of whole rows up to which a rectangle is worked out in float64, without log-normalisers."""
_ROWS = 1 << 21
"""Cells of whole rows that are held at a time."""
_Slot = tuple[int, int, int, bool]
"""Layer, head, sample, and whether there are edits of the head that its log-normalisers (1, 1, Tq) know nothing of."""
_NOTHING = -1e30
"""Log-normalisers below belong to rows whose keys an additive mask hides, all of them alike."""


@dataclass(frozen=True)
class Pair:
    """Why one query attends to one key as much as it does.

    Parameters
    ----------
    q, k
        The query and the key as they meet, (D,), rotary position included.
    scale, softcap, bias
        logit = softcap·tanh(scale·q·k / softcap) + bias; the cap is None where there is none, and the bias holds
        what the model adds by position.
    raw, logit
        scale·q·k, and what becomes of it; −inf where the query may not see the key.
    lse
        Log-normaliser of the query's row: weight = exp(logit − lse).
    weight
        Attention, before edits.
    visible
        Whether the query may see the key.
    edited
        Attention after edits, where an edit concerns the row; None elsewhere.
    """

    q: Tensor
    k: Tensor
    scale: float
    softcap: float | None
    bias: float
    raw: float
    logit: float
    lse: float
    weight: float
    visible: bool
    edited: float | None


class QKStore:
    """Queries and keys of some layers, O(T·D) each: the source of exact tiles for zooming. Thread-safe.

    ``store.tile(layer, head, rows=range(0, 64), cols=range(0, 64))``.

    Parameters
    ----------
    layers
        The calls; their values are let go of.
    """

    def __init__(self, layers: dict[int, AttentionInputs]) -> None:
        self._layers = {layer: bare(inp) for layer, inp in layers.items()}
        self._lse: dict[_Slot, Tensor] = {}

    @property
    def layers(self) -> list[int]:
        """Layers held."""
        return sorted(self._layers)

    @property
    def nbytes(self) -> int:
        """Bytes held; masks and biases that layers share count once."""
        held = [x for inp in self._layers.values() for x in (inp.q, inp.k, inp.mask, inp.bias) if x is not None]
        sizes = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}
        return sum(sizes.values()) + sum(x.numel() * x.element_size() for x in list(self._lse.values()))

    def shape(self, layer: int) -> tuple[int, int, int, int]:
        """Return how many samples, heads, queries and keys a layer has."""
        inp = self._layer(layer)
        return inp.batch, inp.heads, inp.tq, inp.tk

    def know(self, layer: int, head: int, lse: Tensor, *, batch: int = 0) -> None:
        """Take log-normalisers (Tq,) that are known already, so that tiles of the head need not work them out."""
        one = self._one(layer, head, batch)
        if lse.shape != (one.tq,):
            raise RequestError(f"Log-normalisers of shape {tuple(lse.shape)}: this head has {one.tq} queries.")
        if not one.edits:
            self._lse[layer, head, batch, False] = lse.to(one.q.device)[None, None]

    def tile(
        self,
        layer: int,
        head: int,
        *,
        rows: range | None = None,
        cols: range | None = None,
        batch: int = 0,
        pool: tuple[int, int] | None = None,
        reduce: Literal["mean", "max"] = "mean",
    ) -> Tensor:
        """Return attention of one head on a rectangle of queries × keys, (len(rows), len(cols)).

        Parameters
        ----------
        rows, cols
            Query and key positions; all by default.
        pool
            Height and width of blocks that become one number each; the last may be smaller.
        reduce
            How a block becomes a number.
        """
        inp = self._layer(layer)
        one = self._one(layer, head, batch)
        rows, cols = rows or range(inp.tq), cols or range(inp.tk)
        if not (0 <= rows.start < rows.stop <= inp.tq and 0 <= cols.start < cols.stop <= inp.tk):
            raise RequestError(f"Tile {rows} × {cols} is outside the pattern of {inp.tq} × {inp.tk}.")
        if rows.step == cols.step == 1 and not one.edits and chosen() != "reference":
            return self._rectangle(one, (layer, head, batch, False), rows, cols, pool, reduce)
        return _from_rows(one, rows, cols, pool, reduce)

    def _rectangle(
        self,
        one: AttentionInputs,
        slot: _Slot,
        rows: range,
        cols: range,
        pool: tuple[int, int] | None,
        reduce: Literal["mean", "max"],
    ) -> Tensor:
        """Return a rectangle of a head without edits."""
        lse = self._lse.get(slot)
        fused = fused_tile(one, (rows.start, rows.stop), (cols.start, cols.stop), pool, reduce, lse)
        if fused is not None:
            tile, found = fused
            self._lse[slot] = found
            return tile[0, 0].cpu()
        if len(rows) * one.tk <= (_EXACT if pool is None else _EXACT_POOLED):
            part = tiles.whole(one, rows)[0][:, cols.start : cols.stop]
            part = part if pool is None else _pool(part, pool, reduce)
            return part.to(accumulation_dtype(one.q.dtype)).cpu()
        normaliser = self._normaliser(one, slot)
        if one.mask is not None and bool((normaliser[rows.start : rows.stop] < _NOTHING).any()):
            return _from_rows(one, rows, cols, pool, reduce)
        return tiles.tile(one, normaliser, rows, cols, pool, reduce).cpu()

    def _normaliser(self, one: AttentionInputs, slot: _Slot) -> Tensor:
        """Return log-normalisers (Tq,) of a head without edits, worked out where they are not known."""
        if slot not in self._lse:
            self._lse[slot] = tiles.normaliser(one)[None, None]
        return self._lse[slot][0, 0]

    @torch.no_grad()
    def pair(self, layer: int, head: int, query: int, key: int, *, batch: int = 0) -> Pair:
        """Return why a query attends to a key as much as it does."""
        inp = self._layer(layer)
        one = self._one(layer, head, batch)
        if not (0 <= query < inp.tq and 0 <= key < inp.tk):
            raise RequestError(f"Query {query} and key {key} are outside the pattern of {inp.tq} × {inp.tk}.")
        edited = None
        if any(edit.rows is None or bool(edit.rows[0, query]) for edit in one.edits):
            edited = float(self.tile(layer, head, rows=range(query, query + 1), cols=range(key, key + 1), batch=batch))
        plain = replace(one, edits=())
        q, k = one.q[0, 0, query].double().cpu(), one.k[0, 0, key].double().cpu()
        raw = float(q @ k) * one.scale
        bias = 0.0 if one.bias is None else _at(one.bias, query, key)
        visible = not one.causal or key <= query + one.offset
        if one.mask is not None:
            extra = _at(one.mask, query, key)
            if one.mask.dtype == torch.bool:
                visible = visible and bool(extra)
            else:
                visible = visible and extra > torch.finfo(one.mask.dtype).min / 2
                bias += extra if visible else 0.0
        weights, lse, logits = tiles.whole(plain, range(query, query + 1))
        logit, weight = float(logits[0, key]), float(weights[0, key])
        return Pair(q, k, one.scale, one.softcap, bias, raw, logit, float(lse[0]), weight, visible, edited)

    @torch.no_grad()
    def call(self, layer: int, head: int, *, batch: int = 0) -> tuple[AttentionInputs, Tensor]:
        """Return the call of one head (B = H = 1), and the log-normalisers (Tq,) that its rows have before edits."""
        one = self._one(layer, head, batch)
        return one, self._normaliser(replace(one, edits=()), (layer, head, batch, bool(one.edits)))

    def _layer(self, layer: int) -> AttentionInputs:
        if layer not in self._layers:
            raise RequestError(f"Layer {layer} was not kept; layers kept: {self.layers}.")
        return self._layers[layer]

    def _one(self, layer: int, head: int, batch: int) -> AttentionInputs:
        inp = self._layer(layer)
        if not 0 <= head < inp.heads or not 0 <= batch < inp.batch:
            raise RequestError(f"Head {head} of sample {batch}: there are {inp.heads} heads and {inp.batch} samples.")
        return _head(inp, head, batch)


def bare(inp: AttentionInputs) -> AttentionInputs:
    """Return a call without its values: a slice of them would hold them all."""
    q, k = (x.detach() for x in (inp.q, inp.k))
    if q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr():  # with the values, in one projection
        q, k = q.clone(), k.clone()
    return replace(inp, q=q, k=k, v=inp.v.new_empty(*inp.v.shape[:3], 0))


def _from_rows(
    one: AttentionInputs, rows: range, cols: range, pool: tuple[int, int] | None, reduce: Literal["mean", "max"]
) -> Tensor:
    """Return a rectangle cut out of whole rows: of heads under edits, whose rules look at all of a row."""
    step = 1 if pool is None else pool[0]
    height = step * max(1, _ROWS // (step * one.tk))
    parts = []
    for start in range(0, len(rows), height):
        some = torch.tensor(list(rows[start : start + height]))[None]
        found = compute(one, Wants(rows=True), some.to(one.q.device)).rows
        assert found is not None
        part = found[0, 0][:, list(cols)] if cols.step != 1 else found[0, 0, :, cols.start : cols.stop]
        parts.append(part if pool is None else _pool(part, pool, reduce))
    return torch.cat(parts).cpu()


def _at(extra: Tensor, query: int, key: int) -> float:
    """Return a mask or bias (1, 1, Tq or 1, Tk or 1) at one pair."""
    row = extra[0, 0, query if extra.shape[2] > 1 else 0]
    return float(row[key if len(row) > 1 else 0])


def _head(inp: AttentionInputs, head: int, batch: int) -> AttentionInputs:
    """Return one head of one sample, with those edits that concern it."""
    group = inp.with_kv_head(head // inp.group)
    inside = slice(head % inp.group, head % inp.group + 1)

    def pick(extra: Tensor | None) -> Tensor | None:
        if extra is None:
            return None
        one = extra[batch : batch + 1] if extra.shape[0] > 1 else extra
        return one if one.shape[1] == 1 else one[:, inside]

    edits = tuple(edit.pick(inside).of(batch) for edit in group.edits)
    return replace(
        group,
        q=group.q[batch : batch + 1, inside],
        k=group.k[batch : batch + 1],
        v=group.v[batch : batch + 1],
        mask=pick(group.mask),
        bias=pick(group.bias),
        edits=tuple(edit for edit in edits if bool(edit.heads.any())),
        sinks=None if group.sinks is None else group.sinks[inside],
    )


def _pool(part: Tensor, pool: tuple[int, int], reduce: str) -> Tensor:
    def one(block: Tensor, dim: int) -> Tensor:
        return block.mean(dim) if reduce == "mean" else block.amax(dim)

    wide = torch.stack([one(block, -1) for block in part.split(pool[1], dim=-1)], dim=-1)
    return torch.stack([one(block, 0) for block in wide.split(pool[0], dim=0)])
