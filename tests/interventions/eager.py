"""The oracle of attention methods: whole patterns after the softmax, in double precision, one head at a time.

Slow on purpose, and written from the papers' formulas: it shares no line with the engine or with the methods.
``watching`` puts it under a running model. There it computes every attention call again, on the same queries, keys and
values, and keeps how far the engine is from it; with ``instead=True`` the model runs on the oracle alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headscope.attention import engine


@dataclass
class Place:
    """What a formula may look at: one head of one prompt in one call.

    Positions are absolute, padding included. ``q`` are those of the rows (Tq,), ``k`` those of the keys (Tk,).
    """

    layer: int
    head: int
    q: Tensor
    k: Tensor
    prompt: int
    regions: dict[str, set[int]]
    real: set[int]
    logits: Tensor
    sink: Tensor | None = None
    stream: Tensor | None = None
    memory: dict[Any, Any] = field(default_factory=dict)

    def keys(self, *names: str) -> Tensor:
        """Which keys lie in any of the regions, boolean (Tk,)."""
        return self.among(set().union(*(self.regions[name] for name in names)))

    def among(self, positions: set[int]) -> Tensor:
        return torch.tensor([int(k) in positions for k in self.k], dtype=torch.bool)

    def rows(self, *names: str) -> Tensor:
        positions = set().union(*(self.regions[name] for name in names))
        return torch.tensor([int(q) in positions for q in self.q], dtype=torch.bool)

    def of_prompt(self) -> Tensor:
        """Which rows are real tokens of the prompt, boolean (Tq,)."""
        return torch.tensor([int(q) in self.real and int(q) < self.prompt for q in self.q], dtype=torch.bool)


Formula = Callable[[Tensor, Place], Tensor]
"""From a head's pattern (Tq, Tk) to its edited pattern."""


def softmax(logits: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Softmax of rows (…, Tq, Tk); a learned sink per head takes its share and is dropped. A row without keys is 0."""
    if sinks is None:
        return logits.softmax(-1).nan_to_num(0.0)
    column = sinks.to(logits)[..., None, None].expand(*logits.shape[:-1], 1)
    return torch.cat([logits, column], dim=-1).softmax(-1)[..., :-1]


def renormalised(before: Tensor, after: Tensor, at: Place) -> Tensor:
    """Bring rows back to 1; a learned sink counts as one more key of weight 1, and empty rows stay as they were."""
    missing = 1 - before.sum(-1, keepdim=True) if at.sink is not None else torch.zeros_like(before[:, :1])
    total = after.sum(-1, keepdim=True) + missing
    return torch.where(total > 0, after / total, before)


# -- formulas ------------------------------------------------------------------------------------------------------


def pasta(regions: Sequence[str], alpha: float, mode: str = "exclude") -> Formula:
    def formula(a: Tensor, at: Place) -> Tensor:
        weight = torch.ones_like(a[0])
        prompt, span = at.k < at.prompt, at.keys(*regions)
        if mode == "exclude":
            weight[prompt & ~span] = alpha
        elif mode == "include":  # the span rises by alpha, then the whole prompt falls by alpha
            weight[span] *= alpha
            weight[prompt] /= alpha
        else:
            weight[prompt] = alpha
        return renormalised(a, a * weight, at)

    return formula


def column_sinks(a: Tensor, at: Place, threshold: float) -> set[int]:
    """Keys whose mean attention over the prompt's rows that see them is above the threshold, but the first one."""
    rows = at.of_prompt()
    found = []
    for column, k in enumerate(at.k.tolist()):
        seeing = rows & (at.logits[:, column] > -torch.inf)
        if k in at.real and bool(seeing.any()) and float(a[seeing, column].mean()) > threshold:
            found.append(k)
    return set(found[1:])


def act(threshold: float, beta: float) -> Formula:
    def formula(a: Tensor, at: Place) -> Tensor:
        if "sinks" not in at.memory:
            at.memory["sinks"] = column_sinks(a, at, threshold)
        sinks = at.among(at.memory["sinks"])
        taken, given = a * sinks, a * ~sinks
        rest = given.sum(-1, keepdim=True)
        freed = (1 - beta) * taken.sum(-1, keepdim=True)
        return torch.where(rest > 0, beta * taken + given + freed * given / rest, a)  # else there is no one to give to

    return formula


def peaks(at: Place, dimensions: Sequence[int], tau: float) -> set[int]:
    """Tokens of the prompt whose layer input, at a root mean square of 1, peaks in one of the dimensions."""
    assert at.stream is not None
    found = set()
    for row, q in enumerate(at.q.tolist()):
        x = at.stream[row]
        if q < at.prompt and float(x[list(dimensions)].abs().max() / x.pow(2).mean().sqrt()) > tau:
            found.add(q)
    return found


def var(region: str, dimensions: Sequence[int], tau: float, keep: float, portion: float, total: float) -> Formula:
    def formula(a: Tensor, at: Place) -> Tensor:
        if "peaks" not in at.memory:
            at.memory["peaks"] = peaks(at, dimensions, tau) & at.real
        inside, sinks = at.regions[region], at.memory["peaks"]
        visual, text, others = (at.among(s) for s in (sinks & inside, sinks - inside, inside - sinks))
        on_sinks, on_others = (a[:, keys].sum(-1, keepdim=True) for keys in (visual, others))
        seen = on_sinks + on_others
        centred = (on_sinks <= portion * seen) & (seen >= total) & (on_sinks > 0) & (on_others > 0)
        centred &= (at.q > max(inside))[:, None]
        kept, freed = visual | text, (1 - keep) * (on_sinks + a[:, text].sum(-1, keepdim=True))
        moved = torch.where(kept, keep * a, torch.where(others, a * (1 + freed / on_others), a))
        return torch.where(centred, moved, a)

    return formula


def zerotuning(gamma: float) -> Formula:
    def formula(a: Tensor, at: Place) -> Tensor:
        first = at.among({min(at.real)})
        return renormalised(a, torch.where(first, gamma * a, a), at)

    return formula


def spotlight(regions: Sequence[str], target: float) -> Formula:
    def formula(a: Tensor, at: Place) -> Tensor:
        span = at.keys(*regions)
        mass = a[:, span].sum(-1, keepdim=True)
        low = (mass > 0) & (mass < target)
        return torch.where(low, renormalised(a, torch.where(span, a * target / mass, a), at), a)

    return formula


def knockout(source: Sequence[str], target: Sequence[str] | None = None) -> Formula:
    def formula(a: Tensor, at: Place) -> Tensor:
        rows = torch.ones(len(a), dtype=torch.bool) if target is None else at.rows(*target)
        blocked = rows[:, None] & at.keys(*source)
        left = torch.where(blocked, 0.0, a)
        return torch.where(left.sum(-1, keepdim=True) > 0, renormalised(a, left, at), a)

    return formula


def temperature(value: float) -> Formula:
    def formula(a: Tensor, at: Place) -> Tensor:
        return softmax(at.logits / value, at.sink)

    return formula


def pai(regions: Sequence[str], alpha: float) -> Formula:
    def formula(a: Tensor, at: Place) -> Tensor:
        raised = at.logits + alpha * at.logits.abs().nan_to_num(posinf=0.0) * at.keys(*regions)
        return softmax(raised, at.sink)

    return formula


def only_rows(formula: Formula, wanted: Callable[[Place], Tensor]) -> Formula:
    """The formula on some rows alone, boolean (Tq,)."""

    def limited(a: Tensor, at: Place) -> Tensor:
        return torch.where(wanted(at)[:, None], formula(a, at), a)

    return limited


# -- under a running model -----------------------------------------------------------------------------------------


class Oracle:
    """Attention of a model written out.

    Attributes
    ----------
    errors, eager
        For each call with an edited head: largest difference of the engine's output from the oracle's in double
        precision, over edited heads and real rows; and that of the oracle itself at the model's precision.
    spread, eager_spread
        Root mean squares of these differences.
    moved
        How much the formula moved at most of any attention weight.
    patterns
        (B, H, Tq, Tk) of each layer in the last call.
    """

    def __init__(
        self, model: Any, prompts: Sequence[Any], heads: Sequence[tuple[int, int]], formula: Formula, side: str
    ) -> None:
        self.model, self.heads, self.formula = model, set(heads), formula
        self.width = max(map(len, prompts))
        self.starts = [self.width - len(p) if side == "left" else 0 for p in prompts]
        self.lengths = [len(p) for p in prompts]
        self.regions = [
            {name: {start + i for i in found} for name, found in p.regions.items()}
            for p, start in zip(prompts, self.starts, strict=True)
        ]
        self.total = 0
        self.errors: list[float] = []
        self.eager: list[float] = []
        self.spread: list[float] = []
        self.eager_spread: list[float] = []
        self.moved = 0.0
        self.patterns: dict[int, Tensor] = {}
        self._streams: dict[int, Tensor] = {}
        self._memory: dict[Any, dict[Any, Any]] = {}

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: Any, extra: Any, dtype: Any
    ) -> Any:
        """Return output (B, Tq, H, Dv), patterns (B, H, Tq, Tk), and which rows are real (B, Tq)."""
        layer = self.model.sites.by_module[id(module)].layer
        q, k, v = (x.detach().to(dtype) for x in (query, key, value))
        tq, tk = q.shape[2], k.shape[2]
        at_q, at_k = self.total - tq + torch.arange(tq), self.total - tk + torch.arange(tk)
        config = module.config
        window = module.sliding_window if hasattr(module, "sliding_window") else getattr(config, "sliding_window", None)
        softcap = getattr(config, "attn_logit_softcapping", None)
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        out, patterns, reals = [], [], []
        for row in range(len(q)):
            owner = row * len(self.starts) // len(q)  # beams of one prompt lie side by side
            start, stop = self.starts[owner], self.starts[owner] + self.lengths[owner]
            real = set(range(start, stop)) | set(range(self.width, self.total))
            seen = (at_k[None] <= at_q[:, None]) & torch.tensor([int(p) in real for p in at_k])[None]
            if window is not None:
                seen = seen & (at_q[:, None] - at_k[None] < window)
            shared = torch.arange(q.shape[1]) * k.shape[1] // q.shape[1]
            logits = (q[row] @ k[row, shared].transpose(1, 2)) * scale
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            logits = logits.masked_fill(~seen, -torch.inf)
            sinks = module.sinks.detach() if hasattr(module, "sinks") else None
            found = softmax(logits, sinks)
            for head in sorted(head for at, head in self.heads if at == layer):
                memory = self._memory.setdefault((dtype, owner, layer, head), {})
                place = Place(
                    layer, head, at_q, at_k, self.width, self.regions[owner], real, logits[head],
                    None if sinks is None else sinks[head], self._streams[layer][row].to(dtype), memory,
                )  # fmt: skip
                edited = self.formula(found[head], place)
                self.moved = max(self.moved, float((edited - found[head]).abs().max()))
                found[head] = edited
            patterns.append(found)
            out.append((found @ v[row, shared]).transpose(0, 1))
            reals.append([int(p) in real for p in at_q])
        return torch.stack(out), torch.stack(patterns), torch.tensor(reals)

    def compare(self, module: Any, found: Tensor, inputs: Any) -> None:
        """Note how far an output (B, Tq, H, Dv) is from the formula."""
        truth, patterns, real = self.attend(module, *inputs, torch.float64)
        layer = self.model.sites.by_module[id(module)].layer
        self.patterns[layer] = patterns
        edited = sorted(head for at, head in self.heads if at == layer)
        if edited:
            own = truth if found.dtype == torch.float64 else self.attend(module, *inputs, found.dtype)[0]
            for errors, spread, x in ((self.errors, self.spread, found), (self.eager, self.eager_spread, own)):
                off = (x.detach().double() - truth)[real][:, edited]
                errors.append(float(off.abs().max()))
                spread.append(float(off.pow(2).mean().sqrt()))


@contextlib.contextmanager
def watching(
    model: Any,
    prompts: Any,
    heads: Sequence[tuple[int, int]] = (),
    formula: Formula = lambda a, at: a,
    *,
    side: str = "left",
    instead: bool = False,
    prompt_length: int | None = None,
) -> Iterator[Oracle]:
    """Compare every attention call of one run or generation with the oracle, or replace it ``instead``.

    ``prompt_length`` says where the prompt ends, where the text that is run already holds its continuation.
    """
    given = list(prompts) if isinstance(prompts, (list, tuple)) else [prompts]
    oracle = Oracle(model, given, heads, formula, side)
    if prompt_length is not None:
        oracle.width, oracle.lengths = prompt_length, [prompt_length]

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: Any = None, **kw: Any
    ) -> Any:
        if id(module) not in model.sites.by_module:
            return engine.attention(module, query, key, value, mask, scaling=scaling, **kw)
        inputs = (query, key, value, scaling, kw)
        if instead:
            out, oracle.patterns[model.sites.by_module[id(module)].layer], _ = oracle.attend(
                module, *inputs, torch.float64
            )
            return out.to(query.dtype), None
        found, _ = engine.attention(module, query, key, value, mask, scaling=scaling, **kw)
        oracle.compare(module, found, inputs)
        return found, None

    def count(module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        oracle.total += ids.shape[1]

    def look(layer: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            oracle._streams[layer] = (args[0] if args else kwargs["hidden_states"]).detach()

        return hook

    handles = [
        model.hf.register_forward_pre_hook(count, with_kwargs=True),
        *(
            site.block.register_forward_pre_hook(look(site.layer), with_kwargs=True)
            for site in model.sites.stack(None).values()
        ),
    ]
    engine.AttentionInterface.register(engine.NAME, attention)
    try:
        yield oracle
    finally:
        engine.AttentionInterface.register(engine.NAME, engine.attention)
        for handle in handles:
            handle.remove()
