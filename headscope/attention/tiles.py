"""Any rectangle of any head's pattern, computed exactly from stored queries, keys and log-normalisers."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from headscope.errors import RequestError
from headscope.kernels.dispatch import compute, fused_tile
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.rows import Wants


class QKStore:
    """Queries and keys of some layers, O(T·D) each: the source of exact tiles for zooming.

    ``store.tile(layer, head, rows=range(0, 64), cols=range(0, 64))``.
    """

    def __init__(self, layers: dict[int, AttentionInputs]) -> None:
        self._layers = layers
        self._lse: dict[tuple[int, int, int], Tensor] = {}

    @property
    def layers(self) -> list[int]:
        """Layers held."""
        return sorted(self._layers)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(x.numel() * x.element_size() for inp in self._layers.values() for x in (inp.q, inp.k))

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
        if layer not in self._layers:
            raise RequestError(f"Layer {layer} was not kept; layers kept: {self.layers}.")
        inp = self._layers[layer]
        if not 0 <= head < inp.heads or not 0 <= batch < inp.batch:
            raise RequestError(f"Head {head} of sample {batch}: there are {inp.heads} heads and {inp.batch} samples.")
        rows, cols = rows or range(inp.tq), cols or range(inp.tk)
        if not (0 <= rows.start < rows.stop <= inp.tq and 0 <= cols.start < cols.stop <= inp.tk):
            raise RequestError(f"Tile {rows} × {cols} is outside the pattern of {inp.tq} × {inp.tk}.")
        one = _head(inp, head, batch)
        if rows.step == cols.step == 1:
            lse = self._lse.get((layer, head, batch))
            fused = fused_tile(one, (rows.start, rows.stop), (cols.start, cols.stop), pool, reduce, lse)
            if fused is not None:
                tile, self._lse[layer, head, batch] = fused
                return tile[0, 0].cpu()
        height = max(1, 4096 // inp.tk) if pool is None else pool[0] * max(1, 4096 // (pool[0] * inp.tk))
        parts = []
        for start in range(0, len(rows), height):
            chosen = torch.tensor(list(rows[start : start + height]))[None]
            found = compute(one, Wants(rows=True), chosen.to(one.q.device)).rows
            assert found is not None
            part = found[0, 0][:, list(cols)] if cols.step != 1 else found[0, 0, :, cols.start : cols.stop]
            parts.append(part if pool is None else _pool(part, pool, reduce))
        return torch.cat(parts)


def _head(inp: AttentionInputs, head: int, batch: int) -> AttentionInputs:
    group = inp.with_kv_head(head // inp.group)
    inside = slice(head % inp.group, head % inp.group + 1)

    def pick(extra: Tensor | None) -> Tensor | None:
        if extra is None:
            return None
        one = extra[batch : batch + 1] if extra.shape[0] > 1 else extra
        return one if one.shape[1] == 1 else one[:, inside]

    return replace(
        group,
        q=group.q[batch : batch + 1, inside],
        k=group.k[batch : batch + 1],
        v=group.v[batch : batch + 1],
        mask=pick(group.mask),
        bias=pick(group.bias),
        edits=tuple(edit.pick(inside).of(batch) for edit in group.edits),
        sinks=None if group.sinks is None else group.sinks[inside],
    )


def _pool(part: Tensor, pool: tuple[int, int], reduce: str) -> Tensor:
    def one(block: Tensor, dim: int) -> Tensor:
        return block.mean(dim) if reduce == "mean" else block.amax(dim)

    wide = torch.stack([one(block, -1) for block in part.split(pool[1], dim=-1)], dim=-1)
    return torch.stack([one(block, 0) for block in wide.split(pool[0], dim=0)])
