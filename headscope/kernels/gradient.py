"""Attention × gradient received by each key, behind a backward pass, without the pattern."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from headscope.kernels import dispatch
from headscope.kernels.inputs import AttentionInputs, accumulation_dtype
from headscope.kernels.rows import Wants, sweep

_ROWS = 128


@torch.no_grad()
def gradient_received(inp: AttentionInputs, cotangent: Tensor) -> Tensor:
    """Return Σ_q A·dA of each key (B, H, Tk), for the gradient of the output (B, H, Tq, Dv).

    The gradient of the pattern is dA = dO Vᵀ, so that the sum is v·dV with dV = Aᵀ dO, the backward pass of the values
    alone: a kernel of its own on a GPU, elsewhere a sweep over rows.
    """
    fused = dispatch.fused_gradient(inp, cotangent)
    if fused is not None:
        return fused
    dtype = accumulation_dtype(inp.q.dtype)
    working = replace(inp, q=inp.q.to(dtype), k=inp.k.to(dtype), v=inp.v.to(dtype))
    values = torch.zeros(inp.batch, inp.heads, inp.tk, inp.v.shape[-1], dtype=dtype, device=inp.q.device)
    for start in range(0, inp.tq, _ROWS):
        some = torch.arange(start, min(start + _ROWS, inp.tq), device=inp.q.device).expand(inp.batch, -1)
        pattern = sweep(working, Wants(rows=True), some).rows
        assert pattern is not None
        values += pattern.transpose(2, 3) @ cotangent[:, :, start : start + _ROWS].to(dtype)
    return (values * working.v.repeat_interleave(inp.group, dim=1)).sum(-1)
