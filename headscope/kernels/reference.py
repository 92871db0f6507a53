"""The oracle: explicit attention and statistics of it, in any precision, T×T and slow on purpose.

Every other kernel is tested against this file. Outside tests it serves load-time validation, rarer decoding
steps under edits, and training under edits, where gradients must flow through the edited rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from headscope.kernels.edits import Hide, Reweight, Shape
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.rows import Stats, Wants


def _repeated(x: Tensor, group: int) -> Tensor:
    return x if group == 1 else x.repeat_interleave(group, dim=1)


def logits(inp: AttentionInputs) -> Tensor:
    """Return the masked logits (B, H, Tq, Tk); −inf where a query may not look."""
    k = _repeated(inp.k, inp.group)
    s = (inp.q @ k.transpose(-1, -2)) * inp.scale
    if inp.softcap is not None:
        s = inp.softcap * torch.tanh(s / inp.softcap)
    if inp.bias is not None:
        s = s + inp.bias
    for edit in inp.edits:
        if isinstance(edit, Shape):
            s = torch.stack([edit.apply(s[b], b, slice(None)) for b in range(inp.batch)])
    if inp.mask is not None:
        s = s.masked_fill(~inp.mask, -torch.inf) if inp.mask.dtype == torch.bool else s + inp.mask
    if inp.causal:
        future = torch.ones(inp.tq, inp.tk, dtype=torch.bool, device=s.device).triu(inp.offset + 1)
        s = s.masked_fill(future, -torch.inf)
    for edit in inp.edits:
        if isinstance(edit, Hide):
            cut = [edit.cut(s[b] > -torch.inf, b, slice(None)) for b in range(inp.batch)]
            s = s.masked_fill(torch.stack(cut), -torch.inf)
    return s


def lse(inp: AttentionInputs) -> Tensor:
    """Return the log-normaliser of each row, learned sink included: (B, H, Tq)."""
    z = torch.logsumexp(logits(inp), dim=-1)
    return z if inp.sinks is None else torch.logaddexp(z, inp.sinks.to(z)[None, :, None])


def pattern(inp: AttentionInputs) -> Tensor:
    """Return the attention pattern (B, H, Tq, Tk). A row that sees no key is zero."""
    s = logits(inp)
    if inp.sinks is not None:
        s = torch.cat([s, inp.sinks.to(s)[None, :, None, None].expand(*s.shape[:-1], 1)], dim=-1)
    found = s.softmax(-1).nan_to_num(0.0)[..., : inp.tk]
    for edit in inp.edits:
        if isinstance(edit, Reweight):
            factors = [edit.factors(found[b], b, slice(None), leaky=inp.leaky) for b in range(inp.batch)]
            found = found * torch.stack(factors)
    return found


def attend(inp: AttentionInputs) -> Tensor:
    """Return the attention output (B, H, Tq, Dv)."""
    return pattern(inp) @ _repeated(inp.v, inp.group)


def entropy(inp: AttentionInputs) -> Tensor:
    """Return −Σ_k p log p of each row in nats, over keys (a learned sink adds no term): (B, H, Tq)."""
    found: Tensor = torch.special.entr(pattern(inp))
    return found.sum(-1)


def mass(inp: AttentionInputs, indicators: Tensor) -> Tensor:
    """Return attention on each region: (B, H, Tq, G) for indicators (B, Tk, G)."""
    return pattern(inp) @ indicators[:, None].to(inp.q.dtype)


def received(inp: AttentionInputs) -> Tensor:
    """Return column sums (B, H, Tk)."""
    return pattern(inp).sum(2)


def statistics(inp: AttentionInputs, wants: Wants, queries: Tensor | None = None) -> Stats:
    """Return what ``wants`` names, read off the whole pattern, in the inputs' own precision.

    For looking at one's results another way (``HEADSCOPE_KERNEL=reference``); short inputs only.
    """
    found, z = pattern(inp), lse(inp)
    if queries is not None:
        index = queries.to(found.device)[:, None, :, None].expand(-1, inp.heads, -1, inp.tk)
        found, z = found.gather(2, index), z.gather(2, index[..., 0])
    stats = Stats(lse=z if wants.lse else None, rows=found if wants.rows else None)
    if wants.out:
        stats.out = (found @ _repeated(inp.v, inp.group)).to(inp.v.dtype)
    if wants.entropy:
        stats.entropy = torch.special.entr(found).sum(-1)
    if wants.top:
        weight, key = found.topk(min(wants.top, inp.tk), dim=-1)
        if wants.top == 1:
            weight, key = found.max(dim=-1, keepdim=True)
        spare = (0, wants.top - weight.shape[-1])
        stats.top_weights = functional.pad(weight, spare)
        stats.top_keys = functional.pad(torch.where(weight > 0, key, -1), spare, value=-1)
    if wants.received:
        stats.received = found.sum(2)
    if wants.groups is not None:
        stats.grouped = wants.groups[:, None].to(found) @ found
    if wants.project is not None:
        stats.project = found @ wants.project[:, None].to(found)
    if wants.lookup is not None:
        key = wants.lookup[:, None].to(found.device).expand(-1, inp.heads, -1, -1)
        there = (key >= 0) & (key < inp.tk)
        stats.lookup = found.gather(-1, torch.where(there, key, 0)) * there
    if wants.pooled_max is not None:
        height, width = wants.pooled_max
        stats.pooled_max = functional.max_pool2d(found, (height, width), ceil_mode=True)
    return stats
