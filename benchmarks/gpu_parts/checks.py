"""How it is checked: everything asked, from the whole pattern in float64, and how far off a kernel may be."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from headscope.kernels import reference
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.rows import Wants
from headscope.kernels.triton import interpreted
from headscope.kernels.triton.compute import compute, refusal

from .cases import DEVICE, Case, Inputs, Job, four, precise
from .variants import HEADS, KV_HEADS, setting

FLOOR = {"bfloat16": 2.0**-9, "float16": 2.0**-12, "float32": 2.0**-18}
"""Beyond twice the error of eager attention, relative to the largest number. (Logits of 20 come in steps of 2e-6.)"""
if interpreted():
    FLOOR["bfloat16"] = 2.0**-7  # the interpreter rounds towards zero

SHARP = {
    "lse": 1e-4, "entropy": 1e-3, "top_weights": 1e-3, "project": 4e-3, "received": 4e-3, "grouped": 4e-3,
    "lookup": 1e-3, "pooled_max": 1e-3, "rows": 1e-3,
}  # fmt: skip
"""Beyond twice the error of float32 eager attention on the same half-precision inputs: statistics are float32."""

LONG = {"out": 1.5e-2, "lse": 1e-4, "entropy": 1e-3, "project": 4e-3, "top_weights": 1e-3, "received": 4e-3}
"""Relative errors of long calls, in single rows that are computed again in float64."""


def explicit(inp: AttentionInputs, wants: Wants, queries: Tensor | None) -> dict[str, Tensor]:
    """Everything that is asked, from the whole pattern, in the precision of the inputs."""
    pattern, lse = reference.pattern(inp), reference.lse(inp)
    if queries is not None:
        lse = lse.take_along_dim(queries[:, None], 2)
        pattern = pattern.take_along_dim(queries[:, None, :, None], 2)
    found = {"pattern": pattern}
    if wants.out:
        found["out"] = pattern @ inp.v.repeat_interleave(inp.group, dim=1)
    if wants.lse:
        found["lse"] = lse
    if wants.entropy:
        found["entropy"] = torch.special.entr(pattern).sum(-1)
    if wants.top:
        best = pattern.topk(min(wants.top, inp.tk), dim=-1).values
        found["top_weights"] = functional.pad(best, (0, wants.top - best.shape[-1]))
    if wants.received:
        found["received"] = pattern.sum(2)
    if wants.groups is not None:
        found["grouped"] = wants.groups[:, None].to(pattern) @ pattern
    if wants.project is not None:
        found["project"] = pattern @ wants.project[:, None].to(pattern)
    if wants.lookup is not None:
        at = wants.lookup[:, None].expand(-1, inp.heads, -1, -1)
        found["lookup"] = pattern.gather(-1, at.clamp(min=0)) * (at >= 0)
    if wants.pooled_max is not None:
        pad = [x for n, w in ((inp.tk, wants.pooled_max[1]), (inp.tq, wants.pooled_max[0])) for x in (0, -n % w)]
        found["pooled_max"] = functional.max_pool2d(functional.pad(pattern, pad).double(), wants.pooled_max)
    if wants.rows:
        found["rows"] = pattern
    return found


def distance(found: Tensor | None, exact: Tensor) -> float:
    """The largest absolute error; infinite where something is missing, NaN, or infinite in one of them alone."""
    if found is None or found.shape != exact.shape:
        return float("inf")
    gap = torch.where(found == exact, 0.0, (found.double() - exact.double()).abs())
    return float(gap.nan_to_num(nan=float("inf")).max())


def distance_of_top(keys: Tensor | None, pattern: Tensor, wants: int) -> float:
    """How much less than the largest weights the exact weights of the keys found are; infinite if keys repeat."""
    n = min(wants, pattern.shape[-1])
    best = pattern.topk(n, dim=-1).values
    if keys is None or not bool(((keys >= -1) & (keys < pattern.shape[-1])).all()):
        return float("inf")
    there = keys[..., :n] >= 0
    ordered = keys.sort(-1).values
    repeated = ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()
    if bool((there & (best == 0)).any()) or bool(repeated) or bool((keys[..., n:] >= 0).any()):
        return float("inf")
    return float((best - pattern.gather(-1, keys[..., :n].clamp(min=0)) * there).max())


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """New tensors hold NaN, or the largest integer, until something is written to them."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def check(job: Job) -> Job:
    """Compare the kernels with the oracle in one case."""
    case = Case(**{**job["case"], "size": tuple(job["case"]["size"])})
    source = Inputs(case)
    inp = source.call(case)
    half = case.dtype != "float32"
    asked: list[Job] = []
    for name in ("four", case.extra):
        wants, queries = source.ask(name, inp)
        refused = refusal(inp, wants, queries)
        if refused:
            asked.append({"ask": name, "refused": refused})
            continue
        with poisoned():
            stats = compute(inp, wants, queries)
        exact, eager = explicit(precise(inp), wants, queries), explicit(inp, wants, queries)
        single = explicit(precise(inp, torch.float32), wants, queries) if half else eager
        pattern, errors = exact.pop("pattern"), {}
        for stat, truth in exact.items():
            finite = truth[truth.isfinite()].abs()
            largest = float(finite.max()) if finite.numel() else 0.0
            error, base = distance(getattr(stats, stat), truth), distance(eager[stat], truth)
            floor = max(FLOOR[case.dtype] * largest, FLOOR["float32"] * max(1.0, largest))
            if base == float("inf"):  # float16 alone may overflow where we do not
                base = 2 * floor
            bound = 2 * base + floor
            if half and stat in SHARP:
                bound = min(bound, 2 * distance(single[stat], truth) + SHARP[stat] * max(1.0, largest))
            errors[stat] = {"error": error, "bound": bound, "eager": base, "ok": error <= bound}
        if wants.top:
            error = distance_of_top(stats.top_keys, pattern, wants.top)
            errors["top_keys"] = {"error": error, "bound": 1e-4, "ok": error <= 1e-4}
        asked.append({"ask": name, "errors": errors, "ok": all(e["ok"] for e in errors.values())})
    return {"asked": asked, "ok": all(a.get("ok", True) for a in asked)}


def long(job: Job) -> Job:
    """Check a long call in 32 rows, which are computed again in float64."""
    s = setting(job)
    inp, scale = s.call(None, False), s.head_size**-0.5
    with poisoned():
        stats = compute(inp, four(s.regions))
        received = compute(inp, Wants(received=True)).received
    assert received is not None
    last = torch.arange(s.length - 16, s.length, device=DEVICE)
    rows = torch.cat([s.source.integers(s.length - 16, 16), last])
    future = torch.arange(s.length, device=DEVICE) > rows[:, None]
    worst: dict[str, float] = Counter()
    for head in range(HEADS):
        shared = head // (HEADS // KV_HEADS)
        logits = s.q[0, head, rows].double() @ s.k[0, shared].double().T * scale
        logits.masked_fill_(future, -torch.inf)
        pattern = logits.softmax(-1)
        exact = {
            "out": pattern @ s.v[0, shared].double(),
            "lse": logits.logsumexp(-1)[:, None],
            "entropy": torch.special.entr(pattern).sum(-1, keepdim=True),
            "project": pattern @ s.regions[0].double(),
            "top_weights": pattern.max(-1, keepdim=True).values,
        }
        found = {name: getattr(stats, name)[0, head, rows].double().view_as(x) for name, x in exact.items()}
        assert stats.top_keys is not None
        exact["top keys"] = exact["top_weights"]
        found["top keys"] = pattern.gather(-1, stats.top_keys[0, head, rows].clamp(0, s.length - 1))
        # Nobody but the last rows sees the last keys; and what all rows give is one each.
        exact["received"] = pattern[16:, last].sum(0)[:, None]
        found["received"] = received[0, head, last].double()[:, None]
        exact["received in all"] = exact["lse"].new_full((1, 1), s.length)
        found["received in all"] = received[0, head].double().sum().view(1, 1)
        for name, truth in exact.items():
            errors = (found[name] - truth).abs() / truth.abs().amax(-1, keepdim=True).clamp(min=1e-9)
            worst[name] = max(worst[name], float(errors.nan_to_num(nan=float("inf")).max()))
    bounds = {name: LONG.get(name, 1e-3) for name in worst}
    errors = {n: {"error": e, "bound": bounds[n], "ok": e <= bounds[n]} for n, e in worst.items()}
    return {"errors": errors, "ok": all(e["ok"] for e in errors.values())}
