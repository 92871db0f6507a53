"""The oracle: explicit attention and statistics of it, in any precision, T×T and slow on purpose.

Every other kernel is tested against this file. Nothing outside tests and load-time validation calls it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headscope.kernels.inputs import AttentionInputs


def logits(inp: AttentionInputs) -> Tensor:
    """Return the masked logits (B, H, Tq, Tk); −inf where a query may not look."""
    k = inp.k.repeat_interleave(inp.group, dim=1)
    s = (inp.q @ k.transpose(-1, -2)) * inp.scale
    if inp.softcap is not None:
        s = inp.softcap * torch.tanh(s / inp.softcap)
    if inp.bias is not None:
        s = s + inp.bias
    if inp.mask is not None:
        s = s.masked_fill(~inp.mask, -torch.inf) if inp.mask.dtype == torch.bool else s + inp.mask
    if inp.causal:
        future = torch.ones(inp.tq, inp.tk, dtype=torch.bool, device=s.device).triu(inp.offset + 1)
        s = s.masked_fill(future, -torch.inf)
    if inp.hidden is not None:
        cut = s.masked_fill(inp.hidden[:, :, None, :], -torch.inf)
        s = torch.where((cut > -torch.inf).any(-1, keepdim=True), cut, s)
    return s


def lse(inp: AttentionInputs) -> Tensor:
    """Return the log-normaliser of each row, learned sink included: (B, H, Tq)."""
    z = torch.logsumexp(logits(inp), dim=-1)
    return z if inp.sinks is None else torch.logaddexp(z, inp.sinks.to(z)[None, :, None])


def pattern(inp: AttentionInputs) -> Tensor:
    """Return the attention pattern (B, H, Tq, Tk). A row that sees no key is zero."""
    return torch.exp(logits(inp) - lse(inp)[..., None]).nan_to_num(0.0)


def attend(inp: AttentionInputs) -> Tensor:
    """Return the attention output (B, H, Tq, Dv)."""
    return pattern(inp) @ inp.v.repeat_interleave(inp.group, dim=1)


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
