"""What shapes one head's pattern besides queries and keys, in the shortest exact form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headscope.kernels.dispatch import compute
from headscope.kernels.edits import Reweight
from headscope.kernels.inputs import AttentionInputs, accumulation_dtype
from headscope.kernels.rows import Wants

_ROWS = 64
"""Rows of a pattern that are held at a time."""


@dataclass(frozen=True)
class Mask:
    """Which keys each query sees.

    Parameters
    ----------
    first, end
        First key seen and the one behind the last, (Tq,); equal where nothing is seen.
    bits
        One bit for each key, (Tq, ⌈Tk/8⌉), where keys between those are hidden; else None.
    """

    first: NDArray[np.int32]
    end: NDArray[np.int32]
    bits: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Bias:
    """What is added to the logits: by distance (key − query + T − 1), by key, or for each pair."""

    kind: Literal["distance", "key", "pair"]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Factors:
    """What an edit multiplies weights with: group of each key (Tk,), factor by query and group (Tq, groups)."""

    groups: NDArray[np.uint8]
    table: NDArray[np.float32]


def mask_of(one: AttentionInputs) -> Mask:
    """Return which keys the queries of a head see."""
    assert one.mask is not None
    seen = one.mask[0, 0]
    if seen.dtype != torch.bool:
        seen = seen > torch.finfo(seen.dtype).min / 2
    seen = seen.expand(one.tq, one.tk).cpu()
    visible = seen.numpy()
    if one.causal:
        visible = visible & np.tri(one.tq, one.tk, one.offset, dtype=bool)
    counts = visible.sum(1)
    first = np.where(counts, visible.argmax(1), 0).astype(np.int32)
    end = np.where(counts, one.tk - visible[:, ::-1].argmax(1), 0).astype(np.int32)
    whole = bool((counts == end - first).all())
    return Mask(first, end, None if whole else np.packbits(visible, axis=1))


def bias_of(one: AttentionInputs) -> Bias | None:
    """Return what position and an additive mask add to the logits of a head; None if they add nothing."""
    parts = [] if one.bias is None else [one.bias[0, 0].float()]
    if one.mask is not None and one.mask.dtype != torch.bool:
        hidden = one.mask[0, 0] <= torch.finfo(one.mask.dtype).min / 2
        parts.append(one.mask[0, 0].float().masked_fill(hidden, 0.0))
    parts = [part for part in parts if bool(part.any())]
    if not parts:
        return None
    added = sum(parts[1:], parts[0])
    if added.shape[0] == 1 or bool((added == added[:1]).all()):
        return Bias("key", _floats(added[0].expand(one.tk)))
    added = added.expand(one.tq, one.tk)
    if bool((added[1:, 1:] == added[:-1, :-1]).all()):
        return Bias("distance", _floats(torch.cat([added[:, 0].flip(0), added[0, 1:]])))
    return Bias("pair", _floats(added))


@torch.no_grad()
def factors_of(one: AttentionInputs) -> list[Factors]:
    """Return what each edit of a head multiplies its weights with; all of them change weights, not logits."""
    dtype = accumulation_dtype(one.q.dtype)
    device = one.q.device
    edits = [edit for edit in one.edits if isinstance(edit, Reweight)]
    tables = [np.ones((one.tq, edit.count + 1), np.float32) for edit in edits]
    plain = AttentionInputs(
        one.q.to(dtype), one.k.to(dtype), one.v, one.scale, one.mask, one.bias, one.causal, one.softcap, one.sinks
    )
    for start in range(0, one.tq, _ROWS):
        picked = torch.arange(start, min(start + _ROWS, one.tq), device=device)
        tile = compute(plain, Wants(rows=True), picked[None]).rows
        assert tile is not None
        tile = tile[0]
        for edit, table in zip(edits, tables, strict=True):
            factors = edit.factors(tile, 0, picked, leaky=one.leaky)
            groups = edit.groups[0, 0]
            for group in range(edit.count + 1):
                members = (groups == group).nonzero()
                if len(members):
                    table[start : start + len(picked), group] = factors[0, :, members[0, 0]].cpu().numpy()
            tile = tile * factors
    return [
        Factors(edit.groups[0, 0].cpu().numpy().astype(np.uint8), table)
        for edit, table in zip(edits, tables, strict=True)
    ]


def _floats(values: Tensor) -> NDArray[np.float32]:
    return np.asarray(values.cpu().contiguous().numpy(), dtype=np.float32)
