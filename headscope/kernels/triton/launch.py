"""From an attention call and what is asked of it to kernel launches, and back to tensors (B, H, …)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.triton import forward as kernels
from headscope.kernels.triton import received as columns
from headscope.kernels.triton import tile as tiles
from headscope.kernels.triton.arguments import (
    HALVES,
    PAD,
    base,
    blocks,
    dense,
    extras,
    lines,
    lists,
    power,
)
from headscope.kernels.triton.call import Call
from headscope.kernels.triton.config import Config, Shape, choose, processors

_LISTS: Any = WeakIdKeyDictionary()
"""Block lists of masks that are alive: all layers of a forward pass share one mask."""

_CHANNELS: Any = WeakIdKeyDictionary()
"""Per-key vectors that are alive, as the kernel reads them."""


@dataclass(frozen=True)
class Weighing:
    """Rows that weigh groups of keys: the second pass under edits, and whatever reads the edited pattern.

    Parameters
    ----------
    groups
        Group of each key, padded (B, H or 1, Tk + …), uint8.
    table
        Logarithm in base 2 of each row's weight of each group, (B, H, n, COUNT), float32.
    """

    groups: Tensor
    table: Tensor

    @staticmethod
    def arguments(weighing: Weighing | None) -> dict[str, Any]:
        """Return what kernels take."""
        groups = None if weighing is None else weighing.groups
        return {
            "Groups": groups, **blocks("groups", groups), "LogWeights": None if weighing is None else weighing.table,
            "COUNT": 0 if weighing is None else weighing.table.shape[-1],
        }  # fmt: skip


@dataclass
class Pass:
    """What one forward pass gave, (B, H, n, …) each."""

    out: Tensor | None = None
    lse: Tensor | None = None
    entropy: Tensor | None = None
    sums: Tensor | None = None
    top_keys: Tensor | None = None
    top_weights: Tensor | None = None
    """Rounded in half precision, where a look-up tells more."""
    top_logits: Tensor | None = None
    """Of spans, until they are merged."""
    other: Tensor | None = None
    shares: Tensor | None = None


PAIR = 128
"""Up to this head size two accumulators fit a program's registers."""

Planned = tuple[list[Call], Callable[[], Any]]
"""Launches in their order, and what reads the result off once they have run."""


def run(planned: Planned) -> Any:
    """Launch what was planned and return its result."""
    calls, finish = planned
    for call in calls:
        call.run()
    return finish()


def plan_forward(
    inp: AttentionInputs,
    *,
    out: bool = False,
    lse: bool = False,
    entropy: bool = False,
    top: bool = False,
    x: Tensor | None = None,
    positions: Tensor | None = None,
    pair: Tensor | None = None,
    given: Tensor | None = None,
    weighing: Weighing | None = None,
    config: Config | None = None,
) -> Planned:
    """Plan the fused forward; its result is a ``Pass``.

    Parameters
    ----------
    inp
        The call.
    x
        Per-key zeros and ones (B, Tk, C), or (B, H, Tk, C): attention @ x comes back in ``sums``.
    positions
        The queries that are asked for (B, n); all by default.
    pair
        Padded groups (B, H or 1, …) of which 1 is set apart: output of all other keys in ``out`` and of it in
        ``other``, both float32, and what each takes of the row in ``shares`` (2, B, H, n).
    given, weighing
        The log-normaliser (B, H, n), and weights of groups: the second pass under edits.
    """
    q = rows(inp, positions)
    b, h, n, d = q.shape
    dv, device = inp.v.shape[-1], q.device
    half = inp.q.dtype in HALVES
    channels = 0 if x is None else power(x.shape[-1])
    shape = Shape(inp.q.dtype, max(d, dv) if out else d, n, entropy, top, channels, pair is not None, given is not None)
    config = config or choose(
        shape, device,
        lambda candidate: run(
            plan_forward(
                inp, out=out, lse=lse, entropy=entropy, top=top, x=x, positions=positions, pair=pair, given=given,
                weighing=weighing, config=candidate,
            )
        ),
    )  # fmt: skip
    spans, span = (1, inp.tk) if pair is not None else _spans(inp, n, config)
    split = spans > 1

    def new(*tail: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*((spans,) if split else ()), b, h, n, *tail, dtype=dtype, device=device)

    result = Pass()
    if pair is not None:
        result.out, result.other, result.shares = new(dv), new(dv), torch.empty(2, b, h, n, device=device)
    elif out:
        result.out = new(dv) if split else torch.empty(b, n, h, dv, dtype=inp.v.dtype, device=device).transpose(1, 2)
    online = given is None
    result.lse = new() if (lse or split) and online else None
    result.entropy = new() if entropy else None
    result.sums = new(channels) if channels else None
    result.top_keys = new(dtype=torch.int32) if top else None
    result.top_logits = new() if top and split else None
    result.top_weights = new() if top and not (split or half) else None
    padded, kinds = (None, None) if x is None else _channels(x, channels, half, config.n)
    listed = inp.mask is not None and positions is None and not split and n == inp.tq
    found: dict[str, Any] = dict.fromkeys(("FullCount", "FullIndex", "PartCount", "PartIndex"))
    found |= {"lists_b": 0, "lists_h": 0, "lists_m": 0}
    if listed:
        found |= _lists(inp, config)
    o = result.out
    k, v = dense(inp.k), dense(inp.v)
    sinks = inp.sinks if online and not split else None
    call = Call(
        kernels.forward,
        (-(-n // config.m), b * h, spans),
        {
            **base(inp), **extras(inp), **Weighing.arguments(weighing), **found,
            "Q": q, **lines("q", q), "K": k, **lines("k", k), "V": v if out or pair is not None else None,
            **lines("v", v), "X": padded, **blocks("x", padded), "x_n": channels,
            "Kinds": kinds, **blocks("kinds", kinds),
            "Out": o, "out_z": o.stride(0) if o is not None and split else 0,
            **lines("out", o[0] if o is not None and split else o),
            "Other": result.other, "Share": None if result.shares is None else result.shares[0],
            "ShareOther": None if result.shares is None else result.shares[1],
            "Lse": result.lse, "Entropy": result.entropy, "Sums": result.sums, "TopKey": result.top_keys,
            "TopLogit": result.top_logits, "TopWeight": result.top_weights,
            "Positions": positions, "positions_b": 0 if positions is None else positions.stride(0),
            "Sinks": sinks, "sinks_h": 0 if sinks is None else sinks.stride(0),
            "sinks_m": 0 if sinks is None or sinks.dim() == 1 else sinks.stride(1),
            "GivenLse": given, "batch": b, "n": n, "tk": inp.tk, "span": span,
            "DV": dv, "BLOCK_DV": power(dv), "BLOCK_M": config.m, "BLOCK_N": config.n, "CHANNELS": channels,
            "OUT": out or pair is not None, "LSE": result.lse is not None, "ENTROPY": entropy, "TOP": top,
            "PAIR": pair is not None, "GIVEN": given is not None, "SOME": positions is not None, "SPLIT": split,
            "LISTED": listed, "SINKS": sinks is not None, "HALF": half,
        }
        | ({} if pair is None else {"Groups": pair, **blocks("groups", pair)}),
        config.warps, config.stages,
    )  # fmt: skip
    calls = [call]
    parts = result
    if split:
        result, more = _merging(inp, n, parts, spans, online=online)
        calls += more

    def finish() -> Pass:
        if split and not online:
            _add_up(parts, result, inp.v.dtype)
        if x is not None and result.sums is not None:
            result.sums = result.sums[..., : x.shape[-1]]
        return result

    return calls, finish


def _channels(x: Tensor, channels: int, half: bool, block: int) -> tuple[Tensor, Tensor]:
    """Return per-key vectors as the kernel reads them, (B, H or 1, Tk + …, channels), and which blocks have but one.

    Behind the end the last vector goes on, so that it makes no block look mixed.
    """
    known = _CHANNELS.setdefault(x, {})
    slot = (x._version, channels, half, block)
    if slot not in known:
        wide = (x[:, None] if x.dim() == 3 else x).to(torch.float16 if half else torch.float32)
        wide = functional.pad(wide, (0, channels - x.shape[-1]))
        more = PAD + -x.shape[-2] % PAD
        wide = torch.cat([wide, wide[:, :, -1:].expand(-1, -1, more, -1)], dim=2)
        parts = wide.unflatten(2, (-1, block))
        known[slot] = wide, (parts == parts[:, :, :, :1]).all(-1).all(-1).to(torch.uint8)
    return known[slot]  # type: ignore[no-any-return]


def _spans(inp: AttentionInputs, n: int, config: Config) -> tuple[int, int]:
    """Return into how many spans keys are split, and their length: more programs where there are few queries."""
    programs = -(-n // config.m) * inp.batch * inp.heads
    wanted = min(2 * processors(inp.q.device) // max(1, programs), -(-inp.tk // (2 * config.n)), 64)
    if n > 16 or wanted < 2:
        return 1, inp.tk
    span = math.ceil(math.ceil(inp.tk / wanted) / config.n) * config.n
    return -(-inp.tk // span), span


def _lists(inp: AttentionInputs, config: Config) -> dict[str, Any]:
    assert inp.mask is not None
    known = _LISTS.setdefault(inp.mask, {})
    slot = (inp.mask._version, config.m, config.n, inp.causal, inp.tq, inp.tk)
    if slot not in known:
        known[slot] = lists(inp.mask, inp, config.m, config.n)
    return known[slot]  # type: ignore[no-any-return]


def _merging(inp: AttentionInputs, n: int, parts: Pass, spans: int, *, online: bool) -> tuple[Pass, list[Call]]:
    b, h = inp.batch, inp.heads
    device, dv = inp.q.device, inp.v.shape[-1]
    result = Pass(
        out=None if parts.out is None else torch.empty(b, h, n, dv, dtype=inp.v.dtype, device=device),
        lse=None if parts.lse is None else torch.empty(b, h, n, device=device),
        entropy=None if parts.entropy is None else torch.empty(b, h, n, device=device),
        sums=None if parts.sums is None else torch.empty(b, h, n, parts.sums.shape[-1], device=device),
        top_keys=None if parts.top_keys is None else torch.empty(b, h, n, dtype=torch.int32, device=device),
        top_weights=None if parts.top_logits is None else torch.empty(b, h, n, device=device),
    )
    if not online:
        return result, []
    sinks = inp.sinks
    if sinks is not None:
        sinks = (sinks[:, None] if sinks.dim() == 1 else sinks).float().expand(b, h, n).contiguous()
    call = Call(
        kernels.merge,
        (b * h * n,),
        {
            "PartOut": parts.out, "PartLse": parts.lse, "PartEntropy": parts.entropy, "PartSums": parts.sums,
            "PartKey": parts.top_keys, "PartLogit": parts.top_logits, "Sinks": sinks, "Out": result.out,
            "Lse": result.lse,
            "Entropy": result.entropy, "Sums": result.sums, "TopKey": result.top_keys,
            "TopWeight": result.top_weights, "lines": b * h * n,
            "parts": spans, "DV": dv, "BLOCK_DV": power(dv),
            "CHANNELS": 0 if parts.sums is None else parts.sums.shape[-1], "PARTS": power(spans, 2),
            "OUT": parts.out is not None, "LSE": True, "ENTROPY": parts.entropy is not None,
            "TOP": parts.top_keys is not None, "SINKS": sinks is not None,
        },
        4, 1,
    )  # fmt: skip
    return result, [call]


def _add_up(parts: Pass, result: Pass, dtype: torch.dtype) -> None:
    """Add what spans of a normalised row gave."""
    if parts.out is not None:
        result.out = parts.out.sum(0).to(dtype)
    if parts.entropy is not None:
        result.entropy = parts.entropy.sum(0)
    if parts.sums is not None:
        result.sums = parts.sums.sum(0)
    if parts.top_keys is not None and parts.top_logits is not None:
        logits, best = parts.top_logits.max(0, keepdim=True)
        result.top_keys, result.top_weights = parts.top_keys.gather(0, best)[0], logits[0].exp2()


def _reading(inp: AttentionInputs, lse: Tensor, weighing: Weighing | None, positions: Tensor | None) -> dict[str, Any]:
    """Return what kernels take that read the pattern behind a known normaliser."""
    q, k = rows(inp, positions), dense(inp.k)
    return {
        **base(inp), **extras(inp), **Weighing.arguments(weighing), "Q": q, **lines("q", q), "K": k, **lines("k", k),
        "Lse": lse, "n": q.shape[2], "Positions": positions,
        "positions_b": 0 if positions is None else positions.stride(0), "SOME": positions is not None,
    }  # fmt: skip


def rows(inp: AttentionInputs, positions: Tensor | None) -> Tensor:
    """Return the queries at some positions (B, n), all by default."""
    if positions is None:
        return dense(inp.q)
    index = positions.long()[:, None, :, None].expand(inp.batch, inp.heads, -1, inp.q.shape[-1])
    return inp.q.gather(2, index)


def _count(inp: AttentionInputs, positions: Tensor | None) -> int:
    return inp.tq if positions is None else positions.shape[1]


def _without(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in names}


def plan_received(
    inp: AttentionInputs,
    lse: Tensor,
    *,
    gates: Tensor | None = None,
    cotangent: Tensor | None = None,
    weighing: Weighing | None = None,
    config: Config | None = None,
) -> Planned:
    """Plan column sums (B, H, Tk), or (B, H, N, Tk) of queries weighed by ``gates`` (B, N, Tq).

    With ``cotangent`` (B, H, Tq, Dv), the gradient of the output, the result is Σ_q A·dA of each key instead.
    """
    b, h, n, d = inp.q.shape
    count = 1 if gates is None else gates.shape[1]
    config = config or choose(
        Shape(inp.q.dtype, d, n, pair=cotangent is not None, given=True), inp.q.device,
        lambda c: run(plan_received(inp, lse, gates=gates, cotangent=cotangent, weighing=weighing, config=c)),
    )  # fmt: skip
    out = torch.empty(b, h, count, inp.tk, device=inp.q.device)
    gates = None if gates is None else gates.float().contiguous()
    cotangent = None if cotangent is None else dense(cotangent.to(inp.v.dtype))
    v = dense(inp.v)
    found = _without(_reading(inp, lse, weighing, None), "Positions", "positions_b", "SOME")
    call = Call(
        columns.received,
        (-(-inp.tk // config.n), b * h, count),
        {
            **found, "V": v if cotangent is not None else None, **lines("v", v), "Out": out, "Gates": gates,
            "gates_b": 0 if gates is None else gates.stride(0), "gates_g": 0 if gates is None else gates.stride(1),
            "Cotangent": cotangent, **lines("c", cotangent), "groups": count, "tk": inp.tk,
            "DV": inp.v.shape[-1], "BLOCK_DV": power(inp.v.shape[-1]) if cotangent is not None else 16,
            "BLOCK_M": config.m, "BLOCK_N": config.n, "GATED": gates is not None, "GRADIENT": cotangent is not None,
        },
        config.warps, config.stages,
    )  # fmt: skip
    return [call], lambda: out if gates is not None else out[:, :, 0]


def plan_tile(
    inp: AttentionInputs,
    lse: Tensor,
    *,
    span: tuple[int, int] | None = None,
    cols: tuple[int, int] | None = None,
    bins: tuple[int, int] | None = None,
    reduce: str = "mean",
    positions: Tensor | None = None,
    weighing: Weighing | None = None,
    config: Config | None = None,
) -> Planned:
    """Plan a rectangle of the pattern of all heads: (B, H, rows, cols), or its bins of ``bins`` (rows, keys)."""
    b, h, d = inp.batch, inp.heads, inp.q.shape[-1]
    top, bottom = span or (0, _count(inp, positions))
    left, right = cols or (0, inp.tk)
    config = config or choose(Shape(inp.q.dtype, d, min(64, bottom - top), given=True, tile=True), inp.q.device)
    height, width = bottom - top, right - left
    if bins is None:
        grid = (-(-height // config.m), -(-width // config.n), b * h)
    else:
        height, width = -(-height // bins[0]), -(-width // bins[1])
        grid = (height, width, b * h)
    out = torch.empty(b, h, height, width, device=inp.q.device)
    call = Call(
        tiles.tile,
        grid,
        {
            **_reading(inp, lse, weighing, positions), "Out": out, "top": top, "bottom": bottom, "left": left,
            "right": right, "height": height, "width": width, "bin_rows": 1 if bins is None else bins[0],
            "bin_cols": 1 if bins is None else bins[1], "BLOCK_M": config.m, "BLOCK_N": config.n,
            "POOL": 0 if bins is None else (1 if reduce == "mean" else 2),
        },
        config.warps, config.stages,
    )  # fmt: skip
    return [call], lambda: out


def plan_lookup(
    inp: AttentionInputs,
    lse: Tensor,
    keys: Tensor,
    *,
    positions: Tensor | None = None,
    weighing: Weighing | None = None,
) -> Planned:
    """Plan the attention (B, H, n, m) at keys (B, H or 1, n, m), −1 for none."""
    b, h, n = inp.batch, inp.heads, _count(inp, positions)
    keys = keys.contiguous()
    out = torch.empty(b, h, n, keys.shape[-1], device=inp.q.device)
    block = 32 if inp.q.shape[-1] <= 128 else 16
    call = Call(
        tiles.lookup,
        (-(-n // block), b * h, keys.shape[-1]),
        {
            **_without(_reading(inp, lse, weighing, positions), "PRECISION", "WIDE"), "Out": out, "Keys": keys,
            **blocks("keys", keys), "tk": inp.tk, "slots": keys.shape[-1], "BLOCK_M": block,
        },
        4, 1,
    )  # fmt: skip
    return [call], lambda: out


def plan_largest(
    inp: AttentionInputs,
    lse: Tensor,
    count: int,
    *,
    positions: Tensor | None = None,
    weighing: Weighing | None = None,
) -> Planned:
    """Plan the ``count`` keys of largest weight of each row (B, H, n, count), the largest first, −1 for none."""
    b, h, n, d = inp.batch, inp.heads, _count(inp, positions), inp.q.shape[-1]
    config = choose(Shape(inp.q.dtype, d, min(n, 64), given=True, tile=True), inp.q.device)
    codes = torch.empty(b, h, n, power(count, 2), dtype=torch.int64, device=inp.q.device)
    call = Call(
        tiles.largest,
        (-(-n // config.m), b * h),
        {
            **_reading(inp, lse, weighing, positions), "Keys": codes, "tk": inp.tk, "BLOCK_M": config.m,
            "BLOCK_N": config.n, "TOP": codes.shape[-1],
        },
        config.warps, 1,
    )  # fmt: skip

    def finish() -> Tensor:
        best = codes.sort(-1, descending=True).values[..., :count]
        keys = 0x7FFFFFFF - (best & 0xFFFFFFFF)
        return torch.where(best > -(2**63) + 1024, keys, -1)

    return [call], finish


def packed(inp: AttentionInputs) -> AttentionInputs | None:
    """Return a decoding step with the query heads of a key head as rows of one block; None where that is not it."""
    if inp.tq != 1 or inp.group == 1 or inp.edits:
        return None
    b, hkv, g = inp.batch, inp.kv_heads, inp.group

    def folded(extra: Tensor | None) -> Tensor | None:
        if extra is None or extra.shape[1] == 1:
            return extra
        rows: Tensor = extra.unflatten(1, (hkv, g))[:, :, :, 0]
        return rows

    sinks = None if inp.sinks is None else inp.sinks.unflatten(0, (hkv, g))
    q = inp.q.reshape(b, hkv, g, inp.q.shape[-1])
    return replace(inp, q=q, causal=False, mask=folded(inp.mask), bias=folded(inp.bias), sinks=sinks)
