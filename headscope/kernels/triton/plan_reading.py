"""Plan what is read off the pattern behind a known normaliser: column sums, rectangles, weights, largest keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.triton import received as columns
from headscope.kernels.triton import tile as tiles
from headscope.kernels.triton.arguments import WIDTH, blocks, dense, lines, power
from headscope.kernels.triton.call import Call
from headscope.kernels.triton.config import Config, Shape, choose
from headscope.kernels.triton.plan import Planned, Weighing, common, count, rows, run


def _reading(inp: AttentionInputs, lse: Tensor, weighing: Weighing | None, positions: Tensor | None) -> dict[str, Any]:
    """Return what kernels take that read the pattern behind a known normaliser."""
    q, k = rows(inp, positions), dense(inp.k)
    return {
        **common(inp), **Weighing.arguments(weighing), "Q": q, **lines("q", q), "K": k, **lines("k", k),
        "Lse": lse, "n": q.shape[2], "Positions": positions,
        "positions_b": 0 if positions is None else positions.stride(0), "SOME": positions is not None,
    }  # fmt: skip


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
    groups = 1 if gates is None else gates.shape[1]
    config = config or choose(
        Shape(inp.q.dtype, d, n, pair=cotangent is not None, given=True), inp.q.device,
        lambda c: run(plan_received(inp, lse, gates=gates, cotangent=cotangent, weighing=weighing, config=c)),
    )  # fmt: skip
    out = torch.empty(b, h, groups, inp.tk, device=inp.q.device)
    gates = None if gates is None else gates.float().contiguous()
    cotangent = None if cotangent is None else dense(cotangent.to(inp.v.dtype))
    v = dense(inp.v)
    found = _without(_reading(inp, lse, weighing, None), "Positions", "positions_b", "SOME")
    call = Call(
        columns.received,
        (-(-inp.tk // config.n), b * h, groups),
        {
            **found, "V": v if cotangent is not None else None, **lines("v", v), "Out": out, "Gates": gates,
            "gates_b": 0 if gates is None else gates.stride(0), "gates_g": 0 if gates is None else gates.stride(1),
            "Cotangent": cotangent, **lines("c", cotangent), "groups": groups, "tk": inp.tk,
            "DV": inp.v.shape[-1], "BLOCK_DV": power(inp.v.shape[-1], WIDTH) if cotangent is not None else WIDTH,
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
    top, bottom = span or (0, count(inp, positions))
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
    b, h, n = inp.batch, inp.heads, count(inp, positions)
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
    most: int,
    *,
    positions: Tensor | None = None,
    weighing: Weighing | None = None,
) -> Planned:
    """Plan the ``most`` keys of largest weight of each row (B, H, n, most), the largest first, −1 for none."""
    b, h, n, d = inp.batch, inp.heads, count(inp, positions), inp.q.shape[-1]
    config = choose(Shape(inp.q.dtype, d, min(n, 64), given=True, tile=True), inp.q.device)
    codes = torch.empty(b, h, n, power(most, 2), dtype=torch.int64, device=inp.q.device)
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
        best = codes.sort(-1, descending=True).values[..., :most]
        keys = 0x7FFFFFFF - (best & 0xFFFFFFFF)
        return torch.where(best > -(2**63) + 1024, keys, -1)

    return [call], finish
