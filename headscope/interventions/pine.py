"""PINE: answers that do not depend on the order of some segments of the prompt.

Wang et al. 2024, "Eliminating position bias of language models: a mechanistic approach". Two changes to attention, in
every layer and head. Segments see each other in both directions, so that none is read before the others. And every
query places the segments itself: the more they matter to it, the nearer they stand, where what matters is its attention
with positions taken out. The text before the segments is read as ever, the text after them sees them all.

Rotary positions compose: a key that was rotated to position j is at position j + δ after one more rotation by δ, and
turning the query back instead comes to the same. So nothing is recomputed but the logits of queries with moved keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from headscope.attention import budget
from headscope.attention.edits.attention import RowsEdit
from headscope.attention.edits.call import Call
from headscope.attention.session import Answer, Session
from headscope.attention.sites import Site, Sites
from headscope.errors import MemoryBudgetError, RequestError, UnsupportedError
from headscope.interventions.base import Method
from headscope.interventions.rotary import Rotation, rotations
from headscope.kernels import reference
from headscope.kernels.dispatch import compute
from headscope.kernels.inputs import AttentionInputs, accumulation_dtype
from headscope.kernels.rows import Wants

if TYPE_CHECKING:
    from headscope.models.model import Model
    from headscope.models.prompt import Prompt


@dataclass(frozen=True)
class PINE(Method):
    """Make the answer independent of the order of ``segments``.

    Segments are regions of the prompt that follow each other without a gap, in any order; ``PINE.prompt`` builds such a
    prompt. The same prompt with its segments in another order gives the same logits after them, up to rounding. Fewer
    than two segments have one order, so that the method is neutral.

    The prompt is read in one pass; while a layer runs that takes about 4 · B · T² · (H + 4 H / Hkv) bytes, a decoding
    step a row of that. Models with rotary positions are served, sliding windows only where the prompt fits into them.

    Parameters
    ----------
    segments
        Names of regions.
    """

    name: ClassVar[str] = "pine"

    segments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given: Any = self.segments
        segments = (given,) if isinstance(given, str) else tuple(given)
        if len(set(segments)) < len(segments):
            raise RequestError(f"PINE(segments={segments}) names a segment twice.")
        object.__setattr__(self, "segments", segments)

    @property
    def neutral(self) -> bool:
        """Whether there is only one order."""
        return len(self.segments) < 2

    def neutralised(self) -> Self:
        """Return the method on one segment, which is plain attention."""
        return replace(self, segments=self.segments[:1])

    def edits(self, model: Model) -> tuple[Any, ...]:
        """Return the edit of this model's attention.

        Raises
        ------
        UnsupportedError
            If the model's positions are not rotary, or its attention is not causal.
        """
        if self.neutral:
            return (SegmentOrder(self.segments),)
        heads = tuple(model.spec.heads())
        return (SegmentOrder(self.segments, heads, rotations(model), _window(model)),)

    @staticmethod
    def prompt(model: Model, before: str, segments: Sequence[str], after: str) -> Prompt:
        """Return a prompt whose segments are tokenised one by one, so that their tokens do not depend on their order.

        Their regions are called ``segment_0``, ``segment_1`` and so on, in the order given. ``before`` may be empty if
        the tokenizer puts a token in front.
        """
        tokenizer = model._need_tokenizer()
        ids = [int(i) for i in tokenizer(before)["input_ids"]]
        regions: dict[str, range] = {}
        for number, segment in enumerate(segments):
            found = [int(i) for i in tokenizer(segment, add_special_tokens=False)["input_ids"]]
            regions[f"segment_{number}"] = range(len(ids), len(ids) + len(found))
            ids += found
        ids += [int(i) for i in tokenizer(after, add_special_tokens=False)["input_ids"]]
        return model.prompt_from_ids(ids, regions)


@dataclass(frozen=True)
class SegmentOrder(RowsEdit):
    """PINE's edit of one model's attention: made by ``PINE.edits``."""

    segments: tuple[str, ...]
    heads: tuple[tuple[int, int], ...] = ()
    rotations: tuple[Rotation, ...] = ()
    window: int | None = None
    stack: str | None = None

    @property
    def neutral(self) -> bool:
        """Whether there is only one order."""
        return len(self.segments) < 2

    def validate(self, sites: Sites) -> None:
        """Raise RequestError if the edit was made for another model."""
        super().validate(sites)
        if not self.neutral and len(sites.stack(self.stack)) != len(self.rotations):
            raise RequestError(f"PINE was prepared for a model of {len(self.rotations)} layers, not this one.")

    def hooks(self, session: Session) -> list[Any]:
        """Put the arrangement in front of the session's attention; return what takes it away again."""
        return [_Detour(session, self)]

    def bind(self, call: Call) -> None:
        """Return nothing: rows are not edited one by one, they see other keys."""

    def arrange(self, session: Session, site: Site, inp: AttentionInputs) -> AttentionInputs:
        """Return the call with the segments seeing each other, and placed by each query."""
        context = session.context(site.stack, inp.batch)
        call = Call(site, inp, context, session.memory, None)
        if self.window is not None and call.length > self.window:
            raise UnsupportedError(
                f"PINE needs every key: some layers see only the last {self.window} tokens of {call.length}. Use a "
                "shorter prompt, or a model with full attention."
            )
        if inp.tq > 1:
            _check_memory(inp)
        named = [context.region(name, call.length) for name in self.segments]
        mask = _visible(inp).expand(inp.batch, -1, -1, -1).clone()
        shift = inp.q.new_zeros(inp.batch, inp.heads, inp.tq, inp.tk, dtype=accumulation_dtype(inp.q.dtype))
        rotation = self.rotations[site.layer]
        for sample, owner in enumerate(call.owners()):
            layout = _Layout.of([regions[owner] for regions in named], self.segments, inp, call.length - inp.tq)
            for rows, others in layout.between():
                mask[sample, :, rows, others] = True
            for kv_head in range(inp.kv_heads):
                heads = slice(kv_head * inp.group, (kv_head + 1) * inp.group)
                part = inp.with_kv_head(kv_head)
                _fill(shift[sample, heads], part.q[sample], part.k[sample, 0], layout, rotation, inp)
        bias = shift if inp.bias is None else inp.bias + shift
        return replace(inp, mask=mask, bias=bias, causal=False)


class _Detour:
    """Stands in front of one session's ``attend`` until it is removed."""

    def __init__(self, session: Session, edit: SegmentOrder) -> None:
        self.session, self.edit = session, edit
        self.before = session.attend
        session.attend = self.attend  # type: ignore[method-assign]

    def attend(self, site: Site, inp: AttentionInputs, *, gradients: bool) -> Answer:
        """Answer for the arranged call: captures and other edits in force are those of the arranged one."""
        if site.stack != (self.edit.stack or self.session.sites.default):
            return self.before(site, inp, gradients=gradients)
        with torch.set_grad_enabled(gradients):
            arranged = self.edit.arrange(self.session, site, inp)
            answer = self.before(site, arranged, gradients=gradients)
            if answer.out is not None:
                return answer
            out = reference.attend(arranged) if gradients else compute(arranged, Wants(out=True)).out
        if out is None:
            raise AssertionError("a kernel did not return what was asked of it")
        return Answer(answer.over(out))

    def remove(self) -> None:
        """Give the session its own attention back."""
        self.session.attend = self.before  # type: ignore[method-assign]


@dataclass(frozen=True)
class _Layout:
    """Where one sample's segments lie among keys (columns) and queries (rows) of the current call."""

    begins: tuple[int, ...]
    lengths: tuple[int, ...]
    end: int
    first_row: int
    rows: int

    @classmethod
    def of(
        cls, regions: Sequence[Sequence[int]], names: Sequence[str], inp: AttentionInputs, first_row: int
    ) -> _Layout:
        for name, found in zip(names, regions, strict=True):
            if not found or list(found) != list(range(found[0], found[0] + len(found))):
                raise RequestError(
                    f"PINE: segment {name!r} must be one unbroken run of tokens, it is {list(found)[:8]}."
                )
        order = sorted(range(len(regions)), key=lambda g: regions[g][0])
        for a, b in itertools.pairwise(order):
            gap = regions[b][0] - regions[a][-1] - 1
            if gap:
                what = f"{gap} tokens lie between" if gap > 0 else "tokens are shared by"
                raise RequestError(
                    f"PINE: {what} segments {names[a]!r} and {names[b]!r}. Segments follow each other without a gap; "
                    "put separators inside them, or build the prompt with PINE.prompt."
                )
        end = regions[order[-1]][-1] + 1
        if regions[order[0]][0] == 0:
            raise RequestError("PINE: a token must come before the first segment (a BOS token will do).")
        if end > inp.tk:
            raise RequestError("PINE reads all segments in one pass: run the prompt whole, then decode.")
        return cls(tuple(r[0] for r in regions), tuple(map(len, regions)), end, first_row, inp.tq)

    def columns(self, g: int) -> slice:
        """Return the keys of a segment."""
        return slice(self.begins[g], self.begins[g] + self.lengths[g])

    def rows_of(self, g: int) -> slice:
        """Return the current call's queries in a segment; empty while decoding."""
        start, stop = self.begins[g] - self.first_row, self.begins[g] + self.lengths[g] - self.first_row
        return slice(max(0, start), max(0, min(stop, self.rows)))

    @property
    def after(self) -> slice:
        """The current call's queries after the segments."""
        return slice(max(0, self.end - self.first_row), self.rows)

    def between(self) -> list[tuple[slice, slice]]:
        """Return the (queries, keys) of each two different segments."""
        many = range(len(self.begins))
        return [(self.rows_of(a), self.columns(b)) for a in many for b in many if a != b]

    def home(self, g: int) -> int:
        """Return how far a segment's tokens move when it stands last, right before the text that follows."""
        return self.end - self.lengths[g] - self.begins[g]


def _fill(bias: Tensor, q: Tensor, k: Tensor, layout: _Layout, rotation: Rotation, inp: AttentionInputs) -> None:
    """Write into bias (heads, Tq, Tk) what moving segments adds to the logits of q (heads, Tq, D) with k (Tk, D)."""
    q, k = q.to(bias.dtype), k.to(bias.dtype)
    columns = torch.arange(len(k), device=k.device)
    positions = layout.first_row + torch.arange(q.shape[1], device=q.device)
    segments = slice(min(layout.begins), layout.end)
    bare_k = rotation.turn(k[segments], -columns[segments])
    bare_q = rotation.turn(q, -positions.expand(q.shape[:2]))
    readers = [(g, layout.rows_of(g)) for g in range(len(layout.begins))] + [(None, layout.after)]
    for own, rows in readers:
        if rows.stop <= rows.start:
            continue
        bare = _logits(bare_q[:, rows], bare_k, inp)
        behind = _behind(bare, layout, segments.start, own)  # (heads, rows or 1, segments)
        home = 0 if own is None else layout.home(own)
        for g in range(len(layout.begins)):
            if g == own:
                continue
            at = layout.columns(g)
            back = home - (layout.home(g) - behind[..., g])
            _add(bias, q, k, rows, at, back.expand(-1, rows.stop - rows.start), rotation, inp)
        if home:
            before = slice(0, segments.start)
            back = torch.full((q.shape[0], rows.stop - rows.start), home, device=q.device)
            _add(bias, q, k, rows, before, back, rotation, inp)


def _add(
    bias: Tensor, q: Tensor, k: Tensor, rows: slice, at: slice, by: Tensor, rotation: Rotation, inp: AttentionInputs
) -> None:
    moved = _logits(rotation.turn(q[:, rows], by), k[at], inp)
    bias[:, rows, at] = moved - _logits(q[:, rows], k[at], inp)


def _logits(q: Tensor, k: Tensor, inp: AttentionInputs) -> Tensor:
    s = (q @ k.transpose(-1, -2)) * inp.scale
    return s if inp.softcap is None else inp.softcap * torch.tanh(s / inp.softcap)


@torch.no_grad()
def _behind(bare: Tensor, layout: _Layout, start: int, own: int | None) -> Tensor:
    """Return how many tokens of more important segments stand nearer to the reader: (heads, rows or 1, segments).

    Importance is the mean attention per token without positions, among segments, without the reader's own; the queries
    of a segment decide together. It is compared as a logarithm: probabilities underflow, and order would break ties.
    """
    count = len(layout.begins)
    spans = [slice(layout.begins[g] - start, layout.begins[g] - start + layout.lengths[g]) for g in range(count)]
    sums = torch.stack([bare[..., span].logsumexp(-1) for span in spans], dim=-1)
    if own is not None:
        sums[..., own] = -torch.inf
    lengths = torch.tensor(layout.lengths, device=bare.device)
    scores = sums - sums.logsumexp(-1, keepdim=True) - lengths.log()
    if own is not None:
        scores = scores.logsumexp(-2, keepdim=True)
        scores[..., own] = torch.inf
    order = scores.argsort(dim=-1, descending=True, stable=True)
    taken = lengths[order]
    return torch.zeros_like(order).scatter(-1, order, taken.cumsum(-1) - taken)


def _visible(inp: AttentionInputs) -> Tensor:
    """Return who sees whom in plain attention, boolean (B or 1, H or 1, Tq, Tk)."""
    seen = torch.ones(1, 1, inp.tq, inp.tk, dtype=torch.bool, device=inp.q.device)
    if inp.causal:
        seen = seen.tril(inp.offset)
    if inp.mask is not None:
        seen = seen & (inp.mask if inp.mask.dtype == torch.bool else inp.mask > torch.finfo(inp.mask.dtype).min / 2)
    return seen


def _check_memory(inp: AttentionInputs) -> None:
    width = 8 if inp.q.dtype == torch.float64 else 4
    cells = inp.batch * inp.tq * inp.tk
    taken = cells * (width * (inp.heads + 4 * inp.group) + 2)
    if taken > budget.available():
        raise MemoryBudgetError(
            f"PINE on {inp.batch} × {inp.tk} tokens takes {budget.readable(taken)} in each layer, more than the "
            f"{budget.readable(budget.available())} there is. Use a shorter prompt or a smaller batch."
        )


def _window(model: Model) -> int | None:
    windows = [layer.window for layer in model.spec.layers() if layer.window is not None]
    return min(windows) if windows else None
