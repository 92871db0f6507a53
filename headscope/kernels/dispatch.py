"""Choose how the statistics of one attention call are computed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from headscope.kernels import compiled, reference, sdpa
from headscope.kernels.compiled import library
from headscope.kernels.edits import Reweight
from headscope.kernels.inputs import AttentionInputs, accumulation_dtype
from headscope.kernels.rows import Stats, Wants, sweep


def compute(inp: AttentionInputs, wants: Wants, queries: Tensor | None = None) -> Stats:
    """Return what ``wants`` names for all queries, or for ``queries`` (B, n), by the fastest exact way.

    - Output and log-normaliser alone: the fused kernel.
    - Everything on a CPU with the compiled row kernel, and whatever needs whole rows: one sweep.
    - Otherwise (GPU, or no compiler) flash identities, one fused pass each.
    """
    if queries is not None or not sdpa.available(inp):
        return sweep(inp, wants, queries)
    compiled = inp.q.device.type == "cpu" and library() is not None and inp.q.dtype != torch.float64
    if wants == Wants(out=wants.out, lse=wants.lse):
        return _identities(inp, wants)
    needs_rows = wants.top or wants.rows or wants.groups is not None or wants.lookup is not None or wants.pooled_max
    if compiled or needs_rows:
        return sweep(inp, wants)
    return _identities(inp, wants)


def step(inp: AttentionInputs, heads: Tensor) -> Tensor:
    """Return the output (B, n, 1, Dv) of some heads (n,) in a decoding step, Tq = 1, under edits.

    There is nothing to stream, and little to hide overhead behind: one call of the compiled kernel for one edit of
    plain attention, the most usual case by far, and plainly otherwise.
    """
    kernel = library() if inp.q.device.type == "cpu" else None
    if kernel is not None and _simple(inp):
        return compiled.step(kernel, inp, heads, inp.edits[0])
    part, dtype = inp.select(heads), accumulation_dtype(inp.q.dtype)
    working = replace(part, q=part.q.to(dtype), k=part.k.to(dtype), v=part.v.to(dtype))
    return reference.attend(working).to(inp.v.dtype)


def _simple(inp: AttentionInputs) -> bool:
    if len(inp.edits) != 1 or inp.edits[0].rows is not None or inp.bias is not None or inp.softcap is not None:
        return False
    if isinstance(inp.edits[0], Reweight) and inp.edits[0].count >= compiled.GROUPS:
        return False
    mask = inp.mask is None or (
        inp.mask.dtype == torch.bool and inp.mask.shape[1:3] == (1, 1) and inp.mask.stride(3) == 1
    )
    dense = all(x.dtype == torch.float32 and x.stride(3) == 1 for x in (inp.q, inp.k, inp.v))
    return mask and dense and inp.sinks is None


def _identities(inp: AttentionInputs, wants: Wants) -> Stats:
    stats = Stats()
    if wants.out or wants.lse or wants.received:
        stats.out, stats.lse = sdpa.attend(inp)
    if wants.entropy:
        stats.entropy = sdpa.entropy(inp)
    if wants.project is not None:
        stats.project = sdpa.weighted(inp, wants.project)
    if wants.received:
        lse = stats.lse if inp.q.dtype == torch.float32 else sweep_lse(inp)
        assert lse is not None
        stats.received = sdpa.received(inp, lse)
    return stats


def sweep_lse(inp: AttentionInputs) -> Tensor:
    """Return the log-normaliser in full precision for half-precision inputs (B, H, Tq)."""
    q, k = inp.q.float(), inp.k.float()
    return sdpa.attend(replace(inp, q=q, k=k, v=inp.v.float()))[1]


def engine() -> str:
    """Name what computes statistics on this machine's CPU, for provenance."""
    return "rows-compiled" if library() is not None else "rows-torch"
