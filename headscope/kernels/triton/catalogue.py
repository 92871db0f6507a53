"""The kernels' variants by name, planned for given sizes without a byte of memory, to be compiled and priced."""

from __future__ import annotations

import torch
from torch import Tensor

from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.triton.arguments import per_key
from headscope.kernels.triton.call import Call
from headscope.kernels.triton.config import assuming
from headscope.kernels.triton.plan import Planned, Weighing
from headscope.kernels.triton.plan_forward import PAIR, packed, plan_forward
from headscope.kernels.triton.plan_reading import plan_largest, plan_lookup, plan_received, plan_tile


def calls(
    head_size: int,
    dtype: torch.dtype,
    *,
    length: int = 8192,
    heads: int = 32,
    kv_heads: int = 8,
    causal: bool = True,
    target: str = "cuda:90",
) -> dict[str, Call]:
    """Return the launches of every variant for one sample, by name, with the blocks that a target has room for.

    Their tensors hold nothing (device ``meta``).
    """
    with assuming(target):
        return _calls(head_size, dtype, length, heads, kv_heads, causal)


def _calls(head_size: int, dtype: torch.dtype, length: int, heads: int, kv_heads: int, causal: bool) -> dict[str, Call]:

    def new(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    def heads_first(count: int, rows: int) -> Tensor:
        return new(1, rows, count, head_size).transpose(1, 2)

    k, v = heads_first(kv_heads, length), heads_first(kv_heads, length)
    inp = AttentionInputs(heads_first(heads, length), k, v, scale=head_size**-0.5, causal=causal)
    step = AttentionInputs(heads_first(heads, 1), k, v, scale=head_size**-0.5)
    lse = new(1, heads, length, dtype=torch.float32)
    x = new(1, length, 8, dtype=torch.bool)
    groups = per_key(new(1, 1, length, dtype=torch.uint8))
    weighing = Weighing(groups, new(1, heads, length, 4, dtype=torch.float32))
    keys = new(1, heads, length, 1, dtype=torch.int64)
    plans: dict[str, Planned] = {
        "plain": plan_forward(inp, out=True),
        "lse": plan_forward(inp, out=True, lse=True),
        "entropy": plan_forward(inp, out=True, entropy=True),
        "masses": plan_forward(inp, out=True, x=x),
        "top": plan_forward(inp, out=True, top=True),
        "all": plan_forward(inp, out=True, lse=True, entropy=True, x=x, top=True),
        "edited two groups": plan_forward(inp, pair=groups),
        "edited many groups: masses": plan_forward(inp, lse=True, x=x[..., :4]),
        "edited many groups: weighted": plan_forward(inp, out=True, given=lse, weighing=weighing),
        "received": plan_received(inp, lse),
        "received by gradient": plan_received(inp, lse, cotangent=heads_first(heads, length)),
        "tile": plan_tile(inp, lse),
        "overview": plan_tile(inp, lse, bins=(length // 64, length // 64), reduce="max"),
        "lookup": plan_lookup(inp, lse, keys),
        "largest": plan_largest(inp, lse, 8),
        "decode": plan_forward(packed(step) or step, out=True, lse=True, entropy=True, x=x, top=True),
    }
    if head_size > PAIR:
        del plans["edited two groups"]
    return {name: plan[0][0] for name, plan in plans.items()}
