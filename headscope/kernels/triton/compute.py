"""Everything that can be asked of one attention call, by the Triton kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headscope.kernels.edits import Hide, Reweight, Shape
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.rows import Stats, Wants
from headscope.kernels.triton import edits as editing
from headscope.kernels.triton.arguments import per_key
from headscope.kernels.triton.plan import Weighing, run
from headscope.kernels.triton.plan_forward import PAIR, Pass, packed, plan_forward
from headscope.kernels.triton.plan_reading import plan_largest, plan_lookup, plan_received, plan_tile

_CHANNELS = 64
"""How many per-key columns one pass takes."""


def refusal(inp: AttentionInputs, wants: Wants, queries: Tensor | None = None) -> str | None:
    """Return why the kernels cannot serve a call, or None where they can."""
    if inp.q.dtype == torch.float64:
        return "float64 is computed by the row sweep"
    if not 16 <= max(inp.q.shape[-1], inp.v.shape[-1]) <= 256:
        return f"heads of {inp.q.shape[-1]} are outside 16 to 256"
    if queries is not None and (wants.received or wants.groups is not None or wants.pooled_max is not None):
        return "column sums and overviews of some rows only"
    if min(inp.tq, inp.tk) == 0:
        return "there is nothing to attend"
    kinds = [type(edit) for edit in inp.edits]
    if kinds.count(Hide) > 1 or kinds.count(Shape) > 1:
        return "several knock-outs or several logit edits in one layer"
    if editing.size(editing.changes(inp)) > editing.MOST:
        return f"more than {editing.MOST} groups of keys"
    return None


@torch.no_grad()
def compute(inp: AttentionInputs, wants: Wants, queries: Tensor | None = None) -> Stats:
    """Return what ``wants`` names for all queries, or for ``queries`` (B, n)."""
    positions = None if queries is None else queries.to(inp.q.device, torch.int32).contiguous()
    changed = editing.changes(inp)
    plain = replace(inp, edits=tuple(edit for edit in inp.edits if not isinstance(edit, Reweight)))
    count = plain.tq if positions is None else positions.shape[1]
    stats = Stats()
    if changed and wants == Wants(out=True) and editing.size(changed) == 2 and count > 16 and plain.v.shape[-1] <= PAIR:
        stats.out = _pair(plain, changed, positions)
        return stats
    weighing = given = None
    if changed:
        given, weighing = _weighing(plain, changed, positions)
    normaliser = None if given is None else _finite(given)
    vectors = None if wants.indicator else wants.project
    found = _forward(plain, wants if vectors is None else replace(wants, project=None), positions, normaliser, weighing)
    if vectors is not None:
        found.sums = _weighted(plain, vectors, positions, normaliser, weighing)
    lse = found.lse if given is None else given
    stats.out, stats.entropy, stats.project = found.out, found.entropy, found.sums
    stats.lse = lse if wants.lse else None
    if not _reads(wants):
        return stats
    assert lse is not None
    lse = _finite(lse)
    some: dict[str, Any] = {"positions": positions, "weighing": weighing}
    if wants.top:
        keys = found.top_keys[..., None].long() if found.top_keys is not None else None
        if keys is None:
            keys = run(plan_largest(plain, lse, wants.top, **some))
        if found.top_weights is not None and inp.q.dtype == torch.float32:
            weight = found.top_weights[..., None] * (keys >= 0)
        else:
            weight = run(plan_lookup(plain, lse, keys, **some))
        stats.top_keys, stats.top_weights = torch.where(weight > 0, keys, -1), weight
    if wants.received:
        stats.received = run(plan_received(plain, lse, weighing=weighing))
    if wants.groups is not None:
        stats.grouped = run(plan_received(plain, lse, gates=wants.groups, weighing=weighing))
    if wants.lookup is not None:
        stats.lookup = run(plan_lookup(plain, lse, wants.lookup.to(inp.q.device)[:, None], **some))
    if wants.pooled_max is not None:
        stats.pooled_max = run(plan_tile(plain, lse, bins=wants.pooled_max, reduce="max", weighing=weighing))
    if wants.rows:
        stats.rows = run(plan_tile(plain, lse, **some))
    return stats


@torch.no_grad()
def gradient_received(inp: AttentionInputs, cotangent: Tensor) -> Tensor:
    """Return Σ_q A·dA of each key (B, H, Tk), for the gradient of the output (B, H, Tq, Dv)."""
    changed = editing.changes(inp)
    plain = replace(inp, edits=tuple(edit for edit in inp.edits if not isinstance(edit, Reweight)))
    weighing = None
    if changed:
        lse, weighing = _weighing(plain, changed, None)
    else:
        lse = run(plan_forward(plain, lse=True)).lse
    found: Tensor = run(plan_received(plain, _finite(lse), cotangent=cotangent, weighing=weighing))
    return found


@torch.no_grad()
def rectangle(
    inp: AttentionInputs,
    rows: tuple[int, int],
    cols: tuple[int, int],
    bins: tuple[int, int] | None,
    reduce: str,
    lse: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return a rectangle of the pattern, or bins of it, and the log-normaliser (B, H, Tq) that it took."""
    if lse is None:
        lse = _finite(run(plan_forward(inp, lse=True)).lse)
    return run(plan_tile(inp, lse, span=rows, cols=cols, bins=bins, reduce=reduce)), lse


def _finite(lse: Tensor) -> Tensor:
    """Return log-normalisers with 0 for rows that see nothing: all their logits are NEG."""
    return torch.where(lse == -torch.inf, 0.0, lse)


def _reads(wants: Wants) -> bool:
    """Whether anything is read off the pattern behind the forward pass."""
    return bool(
        wants.top or wants.received or wants.groups is not None or wants.lookup is not None
        or wants.pooled_max is not None or wants.rows
    )  # fmt: skip


def _forward(
    inp: AttentionInputs, wants: Wants, positions: Tensor | None, given: Tensor | None, weighing: Weighing | None
) -> Pass:
    lse = given is None and (wants.lse or _reads(wants))
    project = wants.project
    first = project if project is None or project.shape[-1] <= _CHANNELS else project[..., :_CHANNELS]
    top = wants.top == 1
    if not (wants.out or lse or wants.entropy or top or project is not None):
        return Pass()
    folded = packed(inp) if positions is None and given is None else None
    found: Pass = run(
        plan_forward(
            folded or inp, out=wants.out, lse=lse, entropy=wants.entropy, top=top, x=first, positions=positions,
            given=given, weighing=weighing,
        )
    )  # fmt: skip
    if project is not None and project.shape[-1] > _CHANNELS:
        sums = [found.sums]
        for start in range(_CHANNELS, project.shape[-1], _CHANNELS):
            x = project[..., start : start + _CHANNELS]
            more = plan_forward(folded or inp, x=x, positions=positions, given=given, weighing=weighing)
            sums.append(run(more).sums)
        found.sums = torch.cat([x for x in sums if x is not None], dim=-1)
    if folded is not None:
        for name in ("out", "lse", "entropy", "sums", "top_keys", "top_weights"):
            value = getattr(found, name)
            if value is not None:
                setattr(found, name, value.reshape(inp.batch, inp.heads, 1, *value.shape[3:]))
    return found


def _weighted(
    inp: AttentionInputs, x: Tensor, positions: Tensor | None, given: Tensor | None, weighing: Weighing | None
) -> Tensor:
    """Return attention @ x for any per-key vectors (B, Tk, C): they go through as values, in single precision."""
    q, k, heads = inp.q.float(), inp.k.float(), inp.kv_heads
    parts = []
    for piece in x.float().split(_CHANNELS, dim=-1):
        values = piece[:, None].expand(-1, heads, -1, -1).contiguous()
        part = _forward(replace(inp, q=q, k=k, v=values), Wants(out=True), positions, given, weighing).out
        assert part is not None
        parts.append(part)
    return torch.cat(parts, dim=-1)


def _weighing(inp: AttentionInputs, changed: list[Reweight], positions: Tensor | None) -> tuple[Tensor, Weighing]:
    """Return the log-normaliser before weights are changed, and what each row weighs each group of keys with."""
    groups = editing.joint(changed)
    names = torch.arange(editing.size(changed), device=groups.device, dtype=groups.dtype)
    found: Pass = run(plan_forward(inp, lse=True, x=groups[..., None] == names, positions=positions))
    assert found.sums is not None
    assert found.lse is not None
    return found.lse, editing.weighing(groups, editing.weights(inp, changed, found.sums, positions))


def _pair(inp: AttentionInputs, changed: list[Reweight], positions: Tensor | None) -> Tensor:
    """Return the output under one group of keys: both parts of it from one pass, weighed afterwards."""
    found: Pass = run(plan_forward(inp, positions=positions, pair=per_key(changed[0].groups)))
    assert found.out is not None
    assert found.other is not None
    assert found.shares is not None
    weights = editing.weights(inp, changed, found.shares.movedim(0, -1), positions)
    out = torch.addcmul(found.out * weights[..., :1], found.other, weights[..., 1:])
    return out.to(inp.v.dtype)
