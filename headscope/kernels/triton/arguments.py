"""What all kernels take of an attention call beside queries, keys and values, laid out as they read it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from headscope.kernels.edits import Hide, Shape
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.triton import interpreted

PAD = 256
"""Arrays of one number per key are longer than the keys by up to this, so that kernels read whole blocks of them."""

WIDTH = 16
"""The narrowest operand of a product on tensor cores."""

HALVES = (torch.float16, torch.bfloat16)


def lines(name: str, x: Tensor | None) -> dict[str, Any]:
    """Return strides of a (B, H, T, D) tensor under a kernel's names for them."""
    strides = (0, 0, 0) if x is None else x.stride()[:3]
    return {f"{name}_{axis}": stride for axis, stride in zip("bht", strides, strict=True)}


def dense(x: Tensor) -> Tensor:
    """Return x with its last dimension side by side, as it is where that is so already."""
    return x if x.stride(-1) == 1 else x.contiguous()


def per_key(x: Tensor, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Return an array (B, H or 1, Tk) padded for kernels."""
    return functional.pad(x.to(dtype), (0, PAD + -x.shape[-1] % PAD))


def blocks(name: str, x: Tensor | None) -> dict[str, Any]:
    """Return strides of batch and head of a (B or 1, H or 1, …) array, 0 where it is broadcast."""
    found = (0, 0) if x is None else tuple(x.stride(i) if x.shape[i] > 1 else 0 for i in (0, 1))
    return {f"{name}_b": found[0], f"{name}_h": found[1]}


def base(inp: AttentionInputs) -> dict[str, Any]:
    """Return the numbers and flags that every kernel has."""
    hip = torch.version.hip is not None
    return {
        "scale": float(inp.scale),
        "softcap": float(inp.softcap or 1.0),
        "offset": inp.offset,
        "heads": inp.heads,
        "GROUP": inp.group,
        "D": inp.q.shape[-1],
        "BLOCK_D": power(inp.q.shape[-1], WIDTH),
        "SOFTCAP": inp.softcap is not None,
        "CAUSAL": inp.causal,
        "PRECISION": "ieee" if hip or inp.q.dtype in HALVES else "tf32x3",
        "WIDE": interpreted(),
    }


def extras(inp: AttentionInputs) -> dict[str, Any]:
    """Return mask, bias, hidden keys and shaped logits of a call, as kernels take them."""
    found: dict[str, Any] = {}
    for name, x in (("Mask", inp.mask), ("Bias", inp.bias)):
        wide = None if x is None else x.expand(inp.batch, inp.heads, inp.tq, inp.tk)
        if wide is not None and wide.dtype == torch.bool:
            wide = wide.view(torch.uint8)
        found[name] = wide
        strides = (0, 0, 0, 0) if wide is None else wide.stride()
        found |= {f"{name.lower()}_{axis}": stride for axis, stride in zip("bhmn", strides, strict=True)}
    found["MASK"] = 0 if inp.mask is None else (1 if inp.mask.dtype == torch.bool else 2)
    found["BIAS"] = inp.bias is not None
    hides = [edit for edit in inp.edits if isinstance(edit, Hide)]
    shapes = [edit for edit in inp.edits if isinstance(edit, Shape)]
    return found | _hidden(inp, hides[0] if hides else None) | _shapes(inp, shapes[0] if shapes else None)


def _hidden(inp: AttentionInputs, edit: Hide | None) -> dict[str, Any]:
    keys = None if edit is None else per_key(edit.keys)
    rows = None if edit is None else cut_rows(inp, edit).to(torch.uint8)
    return {
        "Hidden": keys, **blocks("hidden", keys), "HiddenRows": rows, **blocks("hidden_rows", rows),
        "HIDE": edit is not None,
    }  # fmt: skip


def cut_rows(inp: AttentionInputs, edit: Hide) -> Tensor:
    """Return which rows (B, H, Tq) an edit hides keys from: those it concerns and that see some other key."""
    free = ~edit.keys
    positions = torch.arange(inp.tq, device=free.device) + inp.offset
    if inp.mask is None:
        first = torch.where(free.any(-1), free.int().argmax(-1), inp.tk)[..., None]
        left = first <= positions if inp.causal else (first < inp.tk).expand(-1, -1, inp.tq)
    else:
        seen = inp.mask if inp.mask.dtype == torch.bool else inp.mask > torch.finfo(inp.mask.dtype).min / 2
        if inp.causal:
            seen = seen & (torch.arange(inp.tk, device=free.device) <= positions[:, None])
        left = (seen.float() @ free.float()[..., None])[..., 0] > 0
    left = left & edit.heads[None, :, None]
    if edit.rows is not None:
        left = left & edit.rows[:, None]
    found: Tensor = left.expand(inp.batch, inp.heads, inp.tq).contiguous()
    return found


def _shapes(inp: AttentionInputs, edit: Shape | None) -> dict[str, Any]:
    table = keys = rows = None
    if edit is not None:
        own = torch.tensor([1 / edit.temperature, edit.bias, edit.boost], device=inp.q.device)
        none = torch.tensor([1.0, 0.0, 0.0], device=inp.q.device)
        table = torch.where(edit.heads.to(inp.q.device)[:, None], own, none).contiguous()
        keys = per_key(edit.keys)
        rows = torch.ones(1, inp.tq, dtype=torch.uint8, device=inp.q.device)
        rows = rows if edit.rows is None else edit.rows.to(torch.uint8).contiguous()
    return {
        "Shapes": table, "ShapeKeys": keys, **blocks("shape_keys", keys), "ShapeRows": rows,
        "shape_rows_b": 0 if rows is None or len(rows) == 1 else rows.stride(0), "SHAPE": edit is not None,
    }  # fmt: skip


def power(n: int, least: int = 1) -> int:
    """Return the smallest power of two that is at least n, and at least ``least``."""
    return max(least, 1 << max(0, n - 1).bit_length())


def lists(mask: Tensor, inp: AttentionInputs, block_m: int, block_n: int) -> dict[str, Any]:
    """Return which blocks of keys each block of queries sees wholly, and which in part.

    ``mask`` is (B or 1, H or 1, Tq or 1, Tk). The others are never visited: a window, padding or packed documents cost
    what they leave.
    """
    boolean = mask.dtype == torch.bool
    some = mask if boolean else mask > torch.finfo(mask.dtype).min / 2
    every = mask if boolean else mask == 0
    few = mask.shape[2] == 1

    def parts(x: Tensor) -> Tensor:
        x = functional.pad(x, (0, -x.shape[3] % block_n, 0, 0 if few else -x.shape[2] % block_m))
        found: Tensor = x.unflatten(3, (-1, block_n)).unflatten(2, (-1, 1 if few else block_m))
        return found

    count = -(-inp.tq // block_m)
    height = torch.full((count,), block_m, device=mask.device)
    height[-1] = inp.tq - (count - 1) * block_m  # rows beyond the end hide no block
    seen = parts(every).sum((3, 5))
    whole = seen == (block_n if few else (height * block_n)[:, None])
    partial = parts(some).any(5).any(3)
    if inp.causal:
        first = torch.arange(count, device=mask.device)[:, None] * block_m + inp.offset
        last = (first + block_m - 1).clamp(max=inp.tk - 1)
        start = torch.arange(whole.shape[3], device=mask.device) * block_n
        whole = whole & (start + block_n - 1 <= first)
        partial = partial & (start <= last)
    whole = whole.expand(-1, -1, count, -1)
    partial = partial & ~whole

    def listed(flags: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.argsort(flags.int(), dim=-1, descending=True, stable=True).int().contiguous()
        return flags.sum(-1).int().contiguous(), order

    counts, order = listed(whole)
    part_counts, part_order = listed(partial)
    return {
        "FullCount": counts, "FullIndex": order, "PartCount": part_counts, "PartIndex": part_order,
        **blocks("lists", counts), "lists_m": order.shape[-1],
    }  # fmt: skip
