"""Check the Triton kernels on a GPU and time them beside PyTorch's own attention: see benchmarks/README.md.

python benchmarks/gpu.py --out gpu.json --plot gpu.png

Jobs run in processes of their own, so that one failing kernel spoils no other result: many processes while there is
something to compile and to check, one alone for timing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import math
import os
import platform
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from headscope.kernels import reference
from headscope.kernels.edits import Hide, Reweight, RowEdit, Shape
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.rows import Wants
from headscope.kernels.rules import Floor, Redistribute, Rule, Scale, Transfer
from headscope.kernels.triton import interpreted
from headscope.kernels.triton.compute import compute, refusal

Job = dict[str, Any]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# -- what is checked -----------------------------------------------------------------------------------------------

DTYPES = ("bfloat16", "float16", "float32")
HEAD_SIZES = (32, 64, 80, 96, 128, 256)
GROUPS = (1, 4, 8)
SIZES = ((257, 257), (129, 300), (333, 333), (65, 641), (1, 515), (7, 7), (511, 511), (1, 1))
"""Queries and keys; kinds that need as many queries as keys take the keys."""

RULES: dict[str, Rule] = {
    "scale": Scale((0.1, 3.0)),
    "knock out": Scale((0.0,)),
    "floor": Floor(0.4),
    "transfer": Transfer(0.3),
    "redistribute": Redistribute(0.5, max_portion=0.6, min_total=0.2),
    "seven groups": Scale((0.0, 0.1, 0.5, 2.0, 4.0, 8.0, 1.0), rest=0.7),
}
SQUARE = ("causal", "padding")
KINDS = (
    *SQUARE, "offset", "full", "window", "packed", "additive mask", "bias", "alibi", "soft-cap", "sinks", "mixed",
    *(f"edit {name}" for name in RULES), "edit hide", "edit shape", "edit several", "edit sinks", "edit window",
)  # fmt: skip
EXTRAS = ("plain", "received", "both", "many regions", "groups", "lookup", "pooled", "rows", "top")

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


@dataclass(frozen=True)
class Case:
    """One cell of the grid of checks: what shapes the pattern, and what is asked beside the four statistics."""

    kind: str
    head_size: int
    dtype: str
    group: int
    extra: str
    size: tuple[int, int]
    peak: float
    seed: int


def grid(rounds: int) -> Iterator[Case]:
    """Every kind with every head size; dtype, group and the rest alternate, and move on in every round."""
    for turn in range(rounds):
        cells = []
        for a, b in itertools.product(range(len(KINDS)), range(len(HEAD_SIZES))):
            tq, tk = SIZES[(5 * a + 3 * b + turn) % len(SIZES)]
            size = (tk if KINDS[a] in SQUARE else max(1, tq // 3) if KINDS[a] == "offset" else tq, tk)
            extra = EXTRAS[(7 * a + 5 * b + 4 * turn) % len(EXTRAS)]
            dtype, group = DTYPES[(a + b + turn) % 3], GROUPS[(a + 2 * b + turn) % 3]
            peak, seed = (1.0, 4.0)[(a + turn) % 2], 1000 * turn + 10 * a + b
            cells.append(Case(KINDS[a], HEAD_SIZES[b], dtype, group, extra, size, peak, seed))
        random.Random(turn).shuffle(cells)  # where the time ends, what was checked is a fair sample
        yield from cells


class Inputs:
    """Makes random tensors of a case, with NaN in the memory around those that a kernel walks along."""

    def __init__(self, case: Case) -> None:
        self.dtype = getattr(torch, case.dtype)
        self.generator = torch.Generator(DEVICE).manual_seed(case.seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=DEVICE)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=self.generator, device=DEVICE)

    def lines(self, batch: int, length: int, heads: int, size: int, factor: float = 1.0) -> Tensor:
        room = torch.full((batch, length + 2, heads, size), torch.nan, dtype=self.dtype, device=DEVICE)
        room[:, 1:-1] = self.normal(batch, length, heads, size) * factor
        return room[:, 1:-1].transpose(1, 2)

    def runs(self, count: int, batch: int, keys: int, heads: int = 1) -> Tensor:
        """A group 0…count for each key, the same for five keys in a row."""
        drawn = self.integers(count + 1, batch, heads, -(-keys // 5)).to(torch.uint8)
        return drawn.repeat_interleave(5, dim=2)[..., :keys].contiguous()

    def call(self, case: Case) -> AttentionInputs:
        """The attention call of a case."""
        kind, (tq, tk), batch, kv_heads = case.kind, case.size, 2, 2
        heads = kv_heads * case.group
        q = self.lines(batch, tq, heads, case.head_size, case.peak)
        k, v = (self.lines(batch, tk, kv_heads, case.head_size) for _ in range(2))
        inp = AttentionInputs(q, k, v, case.head_size**-0.5, causal=True)
        rows, keys = torch.arange(tk - tq, tk, device=DEVICE)[:, None], torch.arange(tk, device=DEVICE)
        window = ((keys <= rows) & (keys > rows - 100))[None, None]
        if kind == "full":
            return replace(inp, causal=False)
        if kind == "padding":
            start = torch.tensor([0, min(37, tk // 2)], device=DEVICE)
            return replace(inp, mask=(keys >= start[:, None])[:, None, None])
        if kind == "packed":
            text = self.integers(4, batch, tk).sort(-1).values
            same = (text[:, None] == text[:, tk - tq :, None]) & (keys <= rows)
            return replace(inp, mask=same[:, None], causal=False)
        if kind == "additive mask":
            low = torch.zeros_like(window, dtype=self.dtype).masked_fill(~window, torch.finfo(self.dtype).min)
            return replace(inp, mask=low.expand(batch, -1, -1, -1).contiguous(), causal=False)
        if kind == "alibi":
            slopes = 2.0 ** -torch.linspace(1, 8, heads, device=DEVICE)
            return replace(inp, bias=(slopes[:, None] * keys)[None, :, None].to(self.dtype))
        if kind in ("window", "mixed", "edit window"):
            inp = replace(inp, mask=window, causal=False)
        if kind in ("bias", "mixed"):
            inp = replace(inp, bias=self.normal(1, heads, tq, tk).to(self.dtype))
        if kind in ("soft-cap", "mixed"):
            inp = replace(inp, softcap=2.0)
        if kind in ("sinks", "mixed", "edit sinks"):
            inp = replace(inp, sinks=self.normal(heads).to(self.dtype))
        return replace(inp, edits=self.edits(kind.removeprefix("edit "), inp)) if kind.startswith("edit") else inp

    def edits(self, name: str, inp: AttentionInputs) -> tuple[RowEdit, ...]:
        heads = torch.ones(inp.heads, dtype=torch.bool, device=DEVICE)
        batch, tk = inp.batch, inp.tk
        hide = Hide(heads, self.runs(1, batch, tk) > 0)
        shape = Shape(heads, self.runs(1, batch, tk) > 0, temperature=1.5, bias=-0.5, boost=0.3)
        rule = RULES.get(name, RULES["scale"])
        change = Reweight(heads, self.runs(rule.groups, batch, tk), rule.groups, rule)
        if name == "redistribute":
            change = replace(change, rows=steady(inp, change))
        if name == "transfer":
            change = replace(change, rows=self.integers(2, batch, inp.tq) > 0)
        if name == "floor":
            change = replace(change, groups=self.runs(1, batch, tk, inp.heads))
        return {"hide": (hide,), "shape": (shape,), "several": (shape, hide, change)}.get(name, (change,))

    def ask(self, name: str, inp: AttentionInputs) -> tuple[Wants, Tensor | None]:
        """What to ask for, and for which queries."""
        batch, tq, tk = inp.batch, inp.tq, inp.tk
        if name == "four":
            return four(self.regions(batch, tk)), None
        if name == "groups":
            return Wants(groups=self.normal(batch, 2, tq).abs()), None
        if name == "lookup":
            return Wants(out=True, lookup=self.integers(tk + 1, batch, tq, 3) - 1), None
        if name == "rows":
            picked = torch.stack([torch.randperm(tq, device=DEVICE)[: min(5, tq)].sort().values for _ in range(batch)])
            return Wants(rows=True, lse=True), picked
        return {
            "plain": Wants(out=True),
            "received": Wants(received=True),
            "both": Wants(out=True, received=True, lse=True),
            "many regions": Wants(project=self.regions(batch, tk, 70), indicator=True),
            "pooled": Wants(pooled_max=(16, 32)),
            "top": Wants(top=5),
        }[name], None

    def regions(self, batch: int, keys: int, count: int = 8) -> Tensor:
        """Zeros and ones (B, Tk, count): regions of keys, which may overlap."""
        return torch.cat([self.runs(1, batch, keys) for _ in range(count)], dim=1).transpose(1, 2).float().contiguous()


def four(regions: Tensor, **more: Any) -> Wants:
    """Output and the four statistics that come with it."""
    return Wants(out=True, lse=True, entropy=True, top=1, project=regions, indicator=True, **more)


def steady(inp: AttentionInputs, edit: Reweight) -> Tensor:
    """Rows (B, Tq) far from the thresholds of Redistribute in every head: rounding must not decide what is edited."""
    rule, pattern = edit.rule, reference.pattern(precise(inp))
    assert isinstance(rule, Redistribute)
    inside, tokens = ((pattern * (edit.groups == group)[:, :, None]).sum(-1) for group in (2, 3))
    near = (inside + tokens - rule.min_total).abs() < 0.01
    near |= (inside - rule.max_portion * (inside + tokens)).abs() < 0.01
    return ~near.any(1)


def precise(inp: AttentionInputs, dtype: torch.dtype = torch.float64) -> AttentionInputs:
    """The same call in another precision."""
    parts = {name: getattr(inp, name) for name in ("q", "k", "v", "mask", "bias", "sinks")}
    return replace(inp, **{n: x.to(dtype) for n, x in parts.items() if x is not None and x.is_floating_point()})


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


# -- what is timed -------------------------------------------------------------------------------------------------

HEADS, KV_HEADS = 32, 8
TARGETS = {  # dense bf16 TFLOP/s and TB/s of data sheets; the first name that fits
    "H200": (989.4, 4.8), "H100 PCIe": (756.0, 2.0), "H100 NVL": (835.0, 3.9), "H100": (989.4, 3.35),
    "A100-SXM4-40GB": (312.0, 1.555), "A100-PCIE-40GB": (312.0, 1.555), "A100": (312.0, 2.039),
    "B200": (2250.0, 8.0), "L40S": (362.0, 0.864), "MI300X": (1307.0, 5.3),
}  # fmt: skip


class Refused(Exception):
    """The kernels say that they cannot do this."""


class Setting:
    """Inputs of one length and head size: bfloat16, one sample, laid out as transformers does."""

    def __init__(self, length: int, head_size: int) -> None:
        self.length, self.head_size = length, head_size
        self.source = Inputs(Case("", head_size, "bfloat16", HEADS // KV_HEADS, "", (length, length), 1.0, length))

        def lines(heads: int) -> Tensor:
            made = torch.empty(1, length, heads, head_size, dtype=torch.bfloat16, device=DEVICE)
            return made.normal_(generator=self.source.generator).transpose(1, 2)

        self.q, self.k, self.v = lines(HEADS), lines(KV_HEADS), lines(KV_HEADS)
        self.regions = self.source.regions(1, length)

    def call(self, edit: str | None, decode: bool) -> AttentionInputs:
        q = self.q[:, :, -1:].contiguous() if decode else self.q
        inp = AttentionInputs(q, self.k, self.v, self.head_size**-0.5, causal=True)
        return inp if edit is None else replace(inp, edits=self.edits(edit))

    def edits(self, name: str) -> tuple[RowEdit, ...]:
        heads = torch.ones(HEADS, dtype=torch.bool, device=DEVICE)
        if name in RULES:
            rule = RULES[name]
            return (Reweight(heads, self.source.runs(rule.groups, 1, self.length), rule.groups, rule),)
        keys = self.source.runs(1, 1, self.length) > 0
        return (Hide(heads, keys) if name == "hide" else Shape(heads, keys, temperature=1.5, bias=-0.5),)


Call = Callable[[], Any]
Build = Callable[[Setting], Call]


def ours(edit: str | None = None, *, decode: bool = False, regions: bool = False, **asked: Any) -> Build:
    """A call of the Triton kernels."""

    def build(s: Setting) -> Call:
        inp = s.call(edit, decode)
        wants = Wants(**asked, **({"project": s.regions, "indicator": True} if regions else {}))
        refused = refusal(inp, wants)
        if refused:
            raise Refused(refused)
        return partial(compute, inp, wants)

    return build


def stock(backend: SDPBackend, *, decode: bool = False) -> Build:
    """One of PyTorch's fused kernels; keys are repeated beforehand if it cannot share them between heads."""

    def build(s: Setting) -> Call:
        q = s.call(None, decode).q

        def call(k: Tensor, v: Tensor, gqa: bool) -> Tensor:
            with sdpa_kernel(backend):
                return functional.scaled_dot_product_attention(q, k, v, is_causal=not decode, enable_gqa=gqa)

        try:
            call(s.k, s.v, True)
        except RuntimeError:
            return partial(call, *(x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (s.k, s.v)), False)
        return partial(call, s.k, s.v, True)

    return build


def flex(*, decode: bool = False) -> Build:
    """FlexAttention, compiled for one length; its causal blocks are written down rather than found by a T×T mask."""

    def build(s: Setting) -> Call:
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        torch._dynamo.reset()
        attention = torch.compile(flex_attention, dynamic=False)
        q = s.call(None, decode).q
        if decode:
            return partial(attention, q, s.k, s.v, enable_gqa=True)
        n = -(-s.length // 128)
        at = torch.arange(n, dtype=torch.int32, device=DEVICE)
        blocks = BlockMask.from_kv_blocks(
            torch.ones_like(at)[None, None], ((at[:, None] + at) % n)[None, None],
            at[None, None], at.expand(n, n)[None, None].contiguous(),
            BLOCK_SIZE=128, mask_mod=lambda b, h, row, key: row >= key, seq_lengths=(s.length, s.length),
        )  # fmt: skip
        return partial(attention, q, s.k, s.v, block_mask=blocks, enable_gqa=True)

    return build


def eager(*, decode: bool = False, statistics_too: bool = False) -> Build:
    """Explicit attention as transformers writes it, with the T×T pattern; its mask is made beforehand."""

    def build(s: Setting) -> Call:
        q = s.call(None, decode).q
        mask = torch.full((q.shape[2], s.length), -torch.inf, dtype=q.dtype, device=DEVICE)
        mask = mask.triu_(1 + s.length - q.shape[2])
        regions = s.regions.to(q.dtype)[:, None]

        def call() -> tuple[Tensor, ...]:
            k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (s.k, s.v))
            logits = q @ k.transpose(2, 3) * s.head_size**-0.5 + mask
            pattern = functional.softmax(logits, dim=-1, dtype=torch.float32).to(q.dtype)
            if not statistics_too:
                return (pattern @ v,)
            entropy = torch.special.entr(pattern).sum(-1)
            return pattern @ v, logits.logsumexp(-1), entropy, pattern @ regions, *pattern.max(-1)

        return call

    return build


ALL: dict[str, Any] = {"out": True, "lse": True, "entropy": True, "top": 1, "regions": True}
VARIANTS: dict[str, Build] = {
    "flash": stock(SDPBackend.FLASH_ATTENTION),
    "plain": ours(out=True),
    "lse": ours(out=True, lse=True),
    "entropy": ours(out=True, entropy=True),
    "masses": ours(out=True, regions=True),
    "top": ours(out=True, top=1),
    "all": ours(**ALL),
    "received": ours(received=True),
    "plain + received": ours(out=True, received=True),
    "edit two groups": ours("floor", out=True),
    "edit four groups": ours("redistribute", out=True),
    "edit eight groups": ours("seven groups", out=True),
    "edit hide": ours("hide", out=True),
    "edit shape": ours("shape", out=True),
    "edit two groups, all": ours("floor", **ALL),
    "decode flash": stock(SDPBackend.FLASH_ATTENTION, decode=True),
    "decode plain": ours(decode=True, out=True),
    "decode all": ours(decode=True, **ALL),
    "decode edit two groups": ours("floor", decode=True, out=True),
    "decode edit hide": ours("hide", decode=True, out=True),
    "cudnn": stock(SDPBackend.CUDNN_ATTENTION),
    "flex": flex(),
    "decode flex": flex(decode=True),
    "decode eager": eager(decode=True),
    "eager": eager(),
    "eager all": eager(statistics_too=True),
    "plain again": ours(out=True),
}
OURS = [n for n in VARIANTS if n.startswith(("plain", "lse", "ent", "mas", "top", "all", "rec", "edit"))]
OURS += ["decode plain", "decode all", "decode edit two groups", "decode edit hide"]
_last: list[Setting] = []


def setting(job: Job) -> Setting:
    """Inputs of a job; those of the last job stay."""
    if not _last or (_last[0].length, _last[0].head_size) != (job["length"], job["head_size"]):
        _last.clear()
        torch.cuda.empty_cache()
        _last.append(Setting(job["length"], job["head_size"]))
    return _last[0]


def warm(job: Job) -> Job:
    """Run a variant once, so that what it compiles lies in the caches."""
    VARIANTS[job["variant"]](setting(job))()
    torch.cuda.synchronize()
    return {}


def once(call: Call) -> float:
    """Milliseconds of one call between two events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def clock(call: Call) -> float:
    """Median milliseconds: ``do_bench`` for short calls, three calls where its eight would take long."""
    from triton.testing import do_bench

    if once(call) > 50:
        return statistics.median(once(call) for _ in range(3))
    return float(do_bench(call, warmup=40, rep=80, return_mode="median"))


def timed(job: Job) -> Job:
    """Measure time and memory of a variant."""
    call = VARIANTS[job["variant"]](setting(job))
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = call()
    torch.cuda.synchronize()
    memory = torch.cuda.max_memory_allocated() - before
    del found
    ms = clock(call)
    found = {"ms": ms, "bytes": memory}
    if ms < 5:  # time until the call returns: where it is not far below ms, Python is what was measured
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            call()
        found["host_ms"] = (time.perf_counter() - start) * 100
    if isinstance(call, partial) and call.args[-1] is False:
        found["note"] = "keys repeated beforehand"
    return found


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


def ceilings(job: Job) -> Job:
    """What this GPU reaches: a large bfloat16 product, and a copy of a gigabyte."""
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    from triton.testing import do_bench

    product = do_bench(lambda: a @ b, warmup=100, rep=300, return_mode="median")
    block = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    copy = do_bench(lambda: block.clone(), warmup=50, rep=100, return_mode="median")
    return {"tflops": 2 * 8192**3 / product / 1e9, "terabytes": 2 * block.numel() / copy / 1e9}


def about(job: Job) -> Job:
    """The machine and its versions."""
    import triton

    found: Job = {"device": DEVICE.type, "python": platform.python_version(), "torch": torch.__version__}
    found["triton"] = triton.__version__
    if DEVICE.type == "cuda":
        found["device"] = torch.cuda.get_device_name()
        found["memory"] = torch.cuda.get_device_properties(0).total_memory
        query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
        with contextlib.suppress(OSError):
            found["driver, power, clock"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        found["datasheet"] = next((t for name, t in TARGETS.items() if name in found["device"]), None)
    return found


# -- processes -----------------------------------------------------------------------------------------------------

DO: dict[str, Callable[[Job], Job]] = {
    "check": check, "warm": warm, "time": timed, "long": long, "ceilings": ceilings, "about": about,
}  # fmt: skip


def perform(job: Job) -> Job:
    """Do a job and return its results, or what went wrong."""
    try:
        return DO[job["do"]](job)
    except Refused as error:
        return {"refused": str(error)}
    except torch.OutOfMemoryError:
        return {"skipped": "does not fit in memory"}
    except Exception as error:  # noqa: BLE001 - whatever a kernel raises is a result here
        text = traceback.format_exc()
        return {"error": f"{type(error).__name__}: {error}"[:1500], "trace": text[-3000:], "broken": "CUDA" in text}


def serve() -> None:
    """Do the jobs that come in, a line each, and answer each with a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    for line in sys.stdin:
        answer = perform(json.loads(line))
        answers.write(json.dumps(plainly(answer)) + "\n")
        answers.flush()
        if answer.get("broken"):
            os._exit(1)  # after an error on the GPU this process is good for nothing
        gc.collect()
        if "skipped" in answer:
            torch.cuda.empty_cache()


def plainly(x: Any) -> Any:
    """JSON knows no infinity: it becomes null."""
    if isinstance(x, dict):
        return {key: plainly(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [plainly(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


class Worker:
    """A process that does jobs; started when it is needed, and again after it failed or took too long."""

    def __init__(self, **environment: str) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1", **environment}

    def ask(self, job: Job, seconds: float) -> Job:
        start = time.monotonic()
        if self.process is None:
            self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said,
                text=True, env=self.environment,
            )  # fmt: skip
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(max(seconds, 1), process.kill)
        timer.start()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        took = time.monotonic() - start
        timer.cancel()
        if line:
            answer: Job = json.loads(line)
        elif took >= seconds:
            answer = {"late": True}
        else:
            self.said.seek(0)
            answer = {"error": f"the process ended with {process.wait()}", "trace": self.said.read()[-2000:]}
        if not line or answer.pop("broken", False):
            self.close()
        return {**job, **answer, "seconds": round(took, 2)}

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.said.close()
        self.process = None


# -- the command ---------------------------------------------------------------------------------------------------


class Results:
    """Everything found so far, written to a file as it comes."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.lock, self.written = path, threading.Lock(), 0.0
        self.data: dict[str, Any] = {"about": {}, "ceilings": {}, "checks": [], "long": [], "times": [], "skipped": []}

    def add(self, part: str, result: Job) -> None:
        with self.lock:
            self.data[part].append(result)
            if time.monotonic() - self.written > 3:
                self.write()

    def write(self) -> None:
        self.written = time.monotonic()
        if self.path is not None:
            spare = self.path.with_suffix(".part")
            spare.write_text(json.dumps(self.data, indent=1))
            spare.replace(self.path)


def run_checks(args: argparse.Namespace, results: Results, until: float) -> None:
    """Fill the compilers' caches, and check the grid, in several processes at once."""
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    if args.only != "checks":
        for size, name in itertools.product(args.head_sizes, OURS):
            for length in {min(args.lengths), max(args.lengths)}:
                jobs.put({"do": "warm", "variant": name, "length": length, "head_size": size})
        for size, length, name in itertools.product(args.head_sizes, args.lengths, ("flex", "decode flex")):
            jobs.put({"do": "warm", "variant": name, "length": length, "head_size": size})
    if args.only != "times":
        for case in grid(1 if args.quick else 3):
            jobs.put({"do": "check", "case": asdict(case)})

    def work() -> None:
        worker = Worker(HEADSCOPE_AUTOTUNE="0")  # nothing can be measured while others work
        while time.monotonic() < until:
            try:
                job = jobs.get_nowait()
            except queue.Empty:
                break
            left = until - time.monotonic()
            answer = late(worker.ask(job, min(180, left)), 180, left)
            if job["do"] == "check":
                results.add("checks", answer)
        worker.close()

    threads = [threading.Thread(target=work) for _ in range(args.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = Counter(jobs.get()["do"] for _ in range(jobs.qsize()))
    if left["check"]:
        results.data["skipped"].append(f"{left['check']} checks: no time left")


def late(answer: Job, enough: float, left: float) -> Job:
    """Say what it means that a job was ended: it hangs, or the time was over."""
    if not answer.pop("late", False):
        return answer
    return {**answer, **({"error": f"took more than {enough:.0f} s"} if enough < left else {"skipped": "no time left"})}


def predicted(name: str, length: int, size: int) -> float:
    """Seconds that a measurement may take: about six calls at a third of a common GPU's speed, and a compilation."""
    calls = 6 * length**2 * HEADS * (2 * size / 3e14 + (25 / 2e12 if "eager" in name else 0))
    return 1 + (0 if "decode" in name else calls) + (6 if "flex" in name else 0)


def run_times(args: argparse.Namespace, results: Results, until: float) -> None:
    """Time every variant, the lengths that say most first."""
    worker = Worker()
    results.data["ceilings"] = worker.ask({"do": "ceilings"}, until - time.monotonic())
    first = [8192, 2048, 32768, 131072, 1024, 4096, 16384, 65536]
    lengths = sorted(args.lengths, key=lambda n: first.index(n) if n in first else len(first))
    for size, length in itertools.product(args.head_sizes, lengths):
        for name in ("check", *VARIANTS):
            left = until - time.monotonic()
            job = {"do": "time", "variant": name, "length": length, "head_size": size}
            if name == "check":
                job = {"do": "long", "length": length, "head_size": size}
            if predicted(name, length, size) > left:
                results.add("skipped", f"{name} at {length}, head size {size}: no time left")
                continue
            enough = 60 + predicted(name, length, size)
            answer = late(worker.ask(job, min(enough, left)), enough, left)
            results.add("long" if name == "check" else "times", fractions(answer, results.data))
        note(f"timed: head size {size}, {length} tokens")
    worker.close()


def fractions(found: Job, data: dict[str, Any]) -> Job:
    """Add what part of the roofline was reached: of the product for long calls, of the memory for decoding."""
    if "ms" not in found:
        return found
    sheet = data["about"].get("datasheet")
    decode = "decode" in found["variant"]
    work = 4 * KV_HEADS * found["head_size"] * found["length"]  # bytes of keys and values
    if not decode:
        work = 4 * HEADS * found["head_size"] * found["length"] ** 2 / 2
    rate = work / found["ms"] / 1e9
    top = data["ceilings"].get("terabytes" if decode else "tflops")
    found["terabytes" if decode else "tflops"] = rate
    found["of_measured"] = rate / top if top else None
    found["of_datasheet"] = rate / sheet[decode] if sheet else None
    return found


def note(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def short(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def print_times(data: dict[str, Any], size: int) -> None:
    """A line for each variant: milliseconds and × flash at each length; the rest at the longest that plain reached."""
    cells = {(t["variant"], t["length"]): t for t in data["times"] if t["head_size"] == size}
    lengths = sorted({length for _, length in cells})
    plain = [n for n in lengths if "ms" in cells.get(("plain", n), {})]
    if not lengths:
        return
    print(f"\nhead size {size}, bf16, {HEADS} heads, {KV_HEADS} key heads, causal: ms and × flash SDPA")
    end = plain[-1] if plain else lengths[-1]
    print(f"{'':23}" + "".join(f"{short(n):>13}" for n in lengths) + f" | {short(end)}: × plain  % peak    MiB")
    for name in VARIANTS:
        line = f"{name:23}"
        for n in lengths:
            found = cells.get((name, n), {})
            base = cells.get(("decode flash" if "decode" in name else "flash", n), {}).get("ms")
            text = {"error": "error", "refused": "refused", "skipped": "-"}
            word = next((w for key, w in text.items() if key in found), "-")
            ms = found.get("ms")
            line += f"{word:>13}" if ms is None else f"{ms:>8.3f}" + (f"{ms / base:>5.2f}" if base else " " * 5)
        found, base = cells.get((name, end), {}), cells.get(("decode plain" if "decode" in name else "plain", end), {})
        if "ms" in found:
            factor = f"{found['ms'] / base['ms']:.2f}" if "ms" in base else ""
            part = f"{100 * found['of_measured']:.0f}" if found.get("of_measured") else ""
            line += f" | {factor:>13} {part:>7} {found['bytes'] / 2**20:>6.0f}"
        print(line)


def summary(data: dict[str, Any]) -> bool:
    """Print what was found and return whether there were checks, and all passed."""
    checked = [c for c in data["checks"] + data["long"] if "skipped" not in c]
    failed = [c for c in checked if not c.get("ok")]
    compared = sum(len(a.get("errors", ())) for c in checked for a in c.get("asked", [c]))
    refused = Counter(a["refused"] for c in data["checks"] for a in c.get("asked", []) if "refused" in a)
    for size in sorted({t["head_size"] for t in data["times"]}):
        print_times(data, size)
    print()
    for part in ("about", "ceilings"):
        kept = {k: v for k, v in data[part].items() if k not in ("do", "seconds")}
        print(f"{part}: " + ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in kept.items()))
    errors: dict[str, str] = {}
    for t in data["times"]:
        if "error" in t or "refused" in t:
            errors.setdefault(f"{t['variant']}: {t.get('error') or t.get('refused')}"[:300], short(t["length"]))
    for text, where in list(errors.items())[:10]:
        print(f"{where}, {text}")
    for why in data["skipped"][:4]:
        print(f"skipped: {why}")
    if len(data["skipped"]) > 4:
        print(f"skipped: {len(data['skipped']) - 4} more, in the file")
    for why, times in refused.most_common(5):
        print(f"refused {times} times: {why}")
    for c in failed[:12]:
        print(f"FAILED {c.get('case') or {k: c[k] for k in ('length', 'head_size')}}: {reason(c)}"[:600])
    passed = len(checked) - len(failed)
    print(f"{passed} of {len(checked)} checks passed: {compared} comparisons, {refused.total()} refused")
    return bool(checked) and not failed


def reason(found: Job) -> str:
    """Why a check failed."""
    if "error" in found:
        return str(found["error"])
    parts = []
    for a in found.get("asked", [found]):
        for stat, e in a.get("errors", {}).items():
            if not e["ok"]:
                error = "missing, NaN or infinite" if e["error"] is None else f"{e['error']:.2e}"
                parts.append(f"{a.get('ask', 'long')}/{stat} {error} > {e['bound']:.2e}")
    return "; ".join(parts)


def plot(data: dict[str, Any], path: Path) -> None:
    """Time over length, and what captures cost, for the first head size."""
    try:
        import matplotlib
    except ImportError:
        note("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    times = [t for t in data["times"] if "ms" in t]
    size = max((t["head_size"] for t in times if t["head_size"] <= 128), default=0)
    at = {(t["variant"], t["length"]): t["ms"] for t in times if t["head_size"] == size}
    lengths = sorted({length for _, length in at})
    figure, axes = pyplot.subplots(1, 3, figsize=(16, 4.6))
    extra = ("lse", "entropy", "masses", "top", "all", "received", "edit two groups")
    drawn = (
        ("one forward, ms", None, ("flash", "cudnn", "flex", "plain", "all", "eager")),
        ("× the plain Triton forward", "plain", extra),
        ("one decoding step, ms", None, tuple(n for n in VARIANTS if n.startswith("decode"))),
    )
    for axis, (title, base, names) in zip(axes, drawn, strict=True):
        for name in names:
            both = [n for n in lengths if (name, n) in at and (not base or (base, n) in at)]
            points = [(n, at[name, n] / (at[base, n] if base else 1)) for n in both]
            axis.plot(*zip(*points, strict=True), marker="o", label=name) if points else None
        axis.set(title=title, xlabel="tokens", xscale="log", yscale="linear" if base else "log")
        axis.set_xticks(lengths, [short(n) for n in lengths])
        axis.minorticks_off()
        axis.legend(fontsize=8)
    setting = f"bf16, {HEADS} heads, {KV_HEADS} key heads, head size {size}, causal"
    figure.suptitle(f"{data['about'].get('device')}, {setting}")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check and time the Triton kernels on this machine's GPU.")
    parser.add_argument("--quick", action="store_true", help="a third of the checks; three lengths; head size 128")
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")], default=None)
    parser.add_argument("--head-sizes", type=lambda text: [int(n) for n in text.split(",")], default=None)
    parser.add_argument("--only", choices=("checks", "times"))
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything")
    cores = max(1, min(12, (os.cpu_count() or 2) - 2))
    parser.add_argument("--jobs", type=int, default=cores, help="processes that check")
    parser.add_argument("--out", type=Path, help="file for the results, JSON")
    parser.add_argument("--plot", type=Path, help="file for a figure")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return 0
    start = time.monotonic()
    args.lengths = args.lengths or ([1024, 8192, 32768] if args.quick else [1 << n for n in range(10, 18)])
    args.head_sizes = args.head_sizes or ([128] if args.quick else [128, 64])
    results = Results(args.out)
    worker = Worker()
    results.data["about"] = worker.ask({"do": "about"}, 120)
    worker.close()
    if "error" in results.data["about"]:
        note(results.data["about"]["trace"] + results.data["about"]["error"])
        return 2
    if DEVICE.type != "cuda" and not interpreted():
        note("There is no GPU. TRITON_INTERPRET=1 runs the checks without one, slowly.")
        return 2
    if DEVICE.type != "cuda":
        args.only = "checks"
        results.data["skipped"].append("all times: there is no GPU")
    end = start + args.budget - 10  # what is printed and drawn takes its time, too
    share = {"checks": 1.0, "times": 0.3}.get(args.only, 0.45)
    run_checks(args, results, start + share * (end - start))
    results.write()
    note(f"checks: {len(results.data['checks'])} in {time.monotonic() - start:.0f} s")
    if args.only != "checks":
        run_times(args, results, end)
    results.write()
    if args.plot is not None and results.data["times"]:
        plot(results.data, args.plot)
    return 0 if summary(results.data) else 1


if __name__ == "__main__":
    sys.exit(main())
