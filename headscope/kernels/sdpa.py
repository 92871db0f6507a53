"""Attention statistics as attention: identities on PyTorch's fused kernels, on any device.

The fused kernels give output and log-normaliser (lse). From them, without ever forming the pattern:

- attention @ x, region masses among them: x as the values;
- entropy: lse − scale · q · (attention @ k), with the keys as the values;
- column sums: swap the roles of queries and keys and fold −lse in as one more dimension; the log-normaliser of
  *that* attention is the log of the column sums (time reversed where the pattern is causal).

The calls that return lse are private or young, so each is wrapped here once, tested against the oracle, and left for
the row sweep wherever it does not apply.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headscope.kernels.inputs import AttentionInputs, accumulation_dtype


def available(inp: AttentionInputs) -> bool:
    """Whether the identities hold for this call: no mask, bias, soft-cap, learned sinks or hidden keys."""
    square = not inp.causal or inp.tq == inp.tk
    fast = inp.q.device.type == "cpu" or (inp.q.device.type == "cuda" and inp.q.dtype != torch.float64)
    return inp.plain and inp.sinks is None and square and fast and inp.q.shape[-1] == inp.v.shape[-1]


def flash(q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Return output (B, H, Tq, Dv) and natural log-normaliser (B, H, Tq) from the device's fused kernel."""
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
        return out, lse
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if q.dtype in (torch.float16, torch.bfloat16):
        found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
        return found[0], found[1]
    found = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal, scale=scale)
    return found[0], found[1][..., : q.shape[2]]


def attend(inp: AttentionInputs) -> tuple[Tensor, Tensor]:
    """Return output and log-normaliser."""
    return flash(inp.q, inp.k, inp.v, scale=inp.scale, causal=inp.causal)


def weighted(inp: AttentionInputs, x: Tensor) -> Tensor:
    """Return attention @ x for per-key x (B, Tk, C): (B, H, Tq, C), in float32.

    The fused kernels are fast only where values are as wide as keys, so x goes through in slices of that width.
    """
    q, k = _full(inp.q), _full(inp.k)
    width, channels = q.shape[-1], x.shape[-1]
    parts = []
    for start in range(0, channels, width):
        piece = x[..., start : start + width].to(q.dtype)
        padded = torch.nn.functional.pad(piece, (0, width - piece.shape[-1]))[:, None]
        values = padded.expand(-1, k.shape[1], -1, -1).contiguous()
        out, _ = flash(q, k, values, scale=inp.scale, causal=inp.causal)
        parts.append(out[..., : piece.shape[-1]])
    return torch.cat(parts, dim=-1)


def entropy(inp: AttentionInputs) -> Tensor:
    """Return the entropy of each row in nats (B, H, Tq), in float32."""
    q, k = _full(inp.q), _full(inp.k)
    mean_key, lse = flash(q, k, k, scale=inp.scale, causal=inp.causal)
    return (lse - inp.scale * (q * mean_key).sum(-1)).clamp(min=0)


def received(inp: AttentionInputs, lse: Tensor) -> Tensor:
    """Return column sums (B, H, Tk), in float32."""
    q, k = _full(inp.q), _full(inp.k).repeat_interleave(inp.group, dim=1)
    queries = torch.cat([k * inp.scale, torch.ones_like(k[..., :1])], dim=-1)
    keys = torch.cat([q, -lse[..., None].to(q.dtype)], dim=-1)
    spare = -queries.shape[-1] % 8  # fused kernels on GPUs want widths that eight divides
    queries, keys = (torch.nn.functional.pad(x, (0, spare)) for x in (queries, keys))
    if inp.causal:
        queries, keys = queries.flip(2), keys.flip(2)
    _, log_sums = flash(queries, keys, torch.zeros_like(keys), scale=1.0, causal=inp.causal)
    return (log_sums.flip(2) if inp.causal else log_sums).exp()


def _full(x: Tensor) -> Tensor:
    return x.to(accumulation_dtype(x.dtype))
