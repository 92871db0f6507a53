"""Plan the fused forward: its launches, and how their results are read off."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.triton import forward as kernels
from headscope.kernels.triton.arguments import HALVES, PAD, WIDTH, blocks, dense, lines, lists, power
from headscope.kernels.triton.call import Call
from headscope.kernels.triton.config import Config, Shape, choose, processors
from headscope.kernels.triton.plan import Planned, Weighing, common, kept, rows, run

_LISTS: Any = WeakIdKeyDictionary()
"""Block lists of masks that are alive: all layers of a forward pass share one mask."""

_CHANNELS: Any = WeakIdKeyDictionary()
"""Per-key vectors that are alive, as the kernel reads them."""

PAIR = 128
"""Up to this head size two accumulators fit a program's registers."""


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
    channels = 0 if x is None else power(x.shape[-1], WIDTH)
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
    padded = kinds = None
    if x is not None:
        padded, kinds = kept(_CHANNELS, x, (channels, half, config.n), lambda: _channels(x, channels, half, config.n))
    listed = inp.mask is not None and positions is None and not split and n == inp.tq
    found: dict[str, Any] = dict.fromkeys(("FullCount", "FullIndex", "PartCount", "PartIndex"))
    found |= {"lists_b": 0, "lists_h": 0, "lists_m": 0}
    if listed:
        found |= _listed(inp, config)
    o = result.out
    k, v = dense(inp.k), dense(inp.v)
    sinks = inp.sinks if online and not split else None
    call = Call(
        kernels.forward,
        (-(-n // config.m), b * h, spans),
        {
            **common(inp), **Weighing.arguments(weighing), **found,
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
            "DV": dv, "BLOCK_DV": power(dv, WIDTH), "BLOCK_M": config.m, "BLOCK_N": config.n, "CHANNELS": channels,
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


def _listed(inp: AttentionInputs, config: Config) -> dict[str, Any]:
    mask = inp.mask
    assert mask is not None
    slot = (config.m, config.n, inp.causal, inp.tq, inp.tk)
    return kept(_LISTS, mask, slot, lambda: lists(mask, inp, config.m, config.n))


def _channels(x: Tensor, channels: int, half: bool, block: int) -> tuple[Tensor, Tensor]:
    """Return per-key vectors as the kernel reads them, (B, H or 1, Tk + …, channels), and which blocks have but one.

    Behind the end the last vector goes on, so that it makes no block look mixed.
    """
    wide = (x[:, None] if x.dim() == 3 else x).to(torch.float16 if half else torch.float32)
    wide = functional.pad(wide, (0, channels - x.shape[-1]))
    more = PAD + -x.shape[-2] % PAD
    wide = torch.cat([wide, wide[:, :, -1:].expand(-1, -1, more, -1)], dim=2)
    parts = wide.unflatten(2, (-1, block))
    return wide, (parts == parts[:, :, :, :1]).all(-1).all(-1).to(torch.uint8)


def _spans(inp: AttentionInputs, n: int, config: Config) -> tuple[int, int]:
    """Return into how many spans keys are split, and their length: more programs where there are few queries."""
    programs = -(-n // config.m) * inp.batch * inp.heads
    wanted = min(2 * processors(inp.q.device) // max(1, programs), -(-inp.tk // (2 * config.n)), 64)
    if n > 16 or wanted < 2:
        return 1, inp.tk
    span = math.ceil(math.ceil(inp.tk / wanted) / config.n) * config.n
    return -(-inp.tk // span), span


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
            "parts": spans, "DV": dv, "BLOCK_DV": power(dv, WIDTH),
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
