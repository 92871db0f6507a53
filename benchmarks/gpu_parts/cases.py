"""What is checked: the grid of cases, and random inputs, edits and questions of each."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from headscope.kernels import reference
from headscope.kernels.edits import Hide, Reweight, RowEdit, Shape
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.rows import Wants
from headscope.kernels.rules import Floor, Redistribute, Rule, Scale, Transfer

Job = dict[str, Any]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

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
