"""One forward pass under observation or under edits: what is asked of which module, and what came back."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from headscope.attention import requests as ask
from headscope.attention.collect import Collector, blank_rows, collectors, heads_first
from headscope.attention.context import Context
from headscope.attention.edits import AttentionEdit, Edit, KnockOut, LogitEdit, RowsEdit
from headscope.attention.edits.call import Call
from headscope.attention.plan import PLANNERS, Needs
from headscope.attention.sites import Site, Sites
from headscope.attention.tiles import bare
from headscope.errors import RequestError, UnsupportedError
from headscope.kernels import reference
from headscope.kernels.dispatch import compute, step
from headscope.kernels.edits import RowEdit
from headscope.kernels.gradient import gradient_received
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.rows import Wants

_EFFECTIVE = ("effective",)
"""Where the memory keeps which edits have changed something."""


@dataclass(frozen=True)
class Tap:
    """One call of a layer whose output's gradient is wanted: the output is (B, H, Tq, Dv)."""

    site: Site
    inp: AttentionInputs
    out: Tensor


@dataclass(frozen=True)
class Answer:
    """What becomes of a layer's output.

    Parameters
    ----------
    out
        The output (B, H, Tq, Dv), where it was computed on the way; None to compute it as ever.
    heads, patch
        Heads (n,) whose output is another, and that output (B, n, Tq, Dv).
    rows
        Query rows (B, m) that ``patch`` (B, n, m, Dv) holds, −1 for none; None for all.
    inp
        The call with its edits, where the gradient of its output is wanted.
    """

    out: Tensor | None = None
    heads: Tensor | None = None
    patch: Tensor | None = None
    rows: Tensor | None = None
    inp: AttentionInputs | None = None

    def over(self, out: Tensor) -> Tensor:
        """Return an output (B, H, Tq, Dv) with the patch in it; it is changed in place where no gradient needs it."""
        if self.heads is None or self.patch is None:
            return out
        patch = self.patch.to(out.dtype)
        out = out.clone() if out.requires_grad or patch.requires_grad else out
        if self.rows is None:
            return out.index_copy_(1, self.heads, patch)
        for sample, rows in enumerate(self.rows):
            there = rows >= 0
            out[sample, self.heads[:, None], rows[there]] = patch[sample][:, there]
        return out

    def changes(self, out: Tensor, real: Tensor | None) -> Tensor:
        """Return which of ``heads`` the patch changes by more than rounding does, boolean (n,).

        ``out`` is the output (B, H, Tq, Dv) without it, and ``real`` (B, Tq) the rows that count, None for all.
        """
        assert self.heads is not None
        assert self.patch is not None
        before, after = out.detach()[:, self.heads], self.patch.detach().to(out.dtype)
        if self.rows is not None:
            at = self.rows.clamp(min=0)
            before = before.gather(2, at[:, None, :, None].expand_as(after))
            real = (self.rows >= 0) if real is None else (self.rows >= 0) & real.gather(1, at)
        if real is not None:
            before, after = (x.masked_fill(~real[:, None, :, None], 0) for x in (before, after))
        eps = torch.finfo(out.dtype).eps
        rounding = (16 if eps < 1e-4 else 4) * eps * before.abs().amax()
        return (after - before).abs().amax((0, 2, 3)) > rounding


class Session:
    """Requests and edits in force while a model runs.

    Parameters
    ----------
    sites
        The model's attention.
    requests
        What to capture.
    edits
        Edits in force. They change what is captured: a statistic is that of the edited model.
    contexts
        Context of each stack.
    memory
        What edits found in the prefill, for the decoding steps after it.
    """

    def __init__(
        self,
        sites: Sites,
        requests: Iterable[ask.Request] = (),
        edits: Iterable[Edit] = (),
        contexts: dict[str, Context] | None = None,
        memory: dict[Hashable, Any] | None = None,
    ) -> None:
        self.sites = sites
        self.edits = tuple(edit for edit in edits if not edit.neutral)
        self.memory = {} if memory is None else memory
        self.contexts = contexts or {}
        self.collectors = collectors(requests, sites)
        self.stored: dict[str, dict[int, AttentionInputs]] = {}
        self.taps: list[Tap] = []
        self._calls: dict[int, list[Collector]] = defaultdict(list)
        self._editors: dict[tuple[str, int], list[tuple[int, RowsEdit]]] = defaultdict(list)
        for number, edit in enumerate(self.edits):
            if isinstance(edit, RowsEdit):
                for layer in {layer for layer, _ in edit.heads}:
                    self._editors[edit.stack or sites.default, layer].append((number, edit))
        self._rows: dict[int, tuple[int, int, int]] = {}
        self._visited: set[int] = set()
        self._handles: list[Any] = []
        for collector in self.collectors:
            if type(collector.request) in PLANNERS or isinstance(collector.request, ask.QK):
                found = sites.by_stack[collector.stack]
                for layer in collector.layers:
                    self._calls[id(found[layer].attention)].append(collector)
        self._tapped = {
            id(sites.by_stack[collector.stack][layer].attention)
            for collector in self.collectors
            if isinstance(collector.request, ask.GradReceived)
            for layer in collector.layers
        }

    def context(self, stack: str, batch: int) -> Context:
        """Return the context of a stack; without one all positions are real and no region has a name."""
        if stack not in self.contexts:
            self.contexts[stack] = Context(batch=batch)
        return self.contexts[stack]

    def places(self, site: Site) -> Tensor:
        """Return where the rows of a site's current call stand in their prompts, padding not counted: (B, T)."""
        start, batch, length = self._rows[id(site.output)]
        places = torch.arange(start, start + length).expand(batch, -1)
        valid = self.context(site.stack, batch).valid
        if valid is None:
            return places
        before = valid.int().argmax(-1).cpu()  # padding on the left
        owners = torch.arange(batch) * len(before) // batch  # beams of one prompt lie side by side
        return (places - before[owners][:, None]).clamp(min=0)

    # -- inside the attention function -------------------------------------------------------------------------

    def concerns(self, module: nn.Module) -> Site | None:
        """Return the site of an attention module if anything is asked or changed there."""
        site = self.sites.by_module.get(id(module))
        if site is None or not (self.edits or id(module) in self._calls or id(module) in self._tapped):
            return None
        return site

    @property
    def backwards(self) -> bool:
        """Whether the model must be run backwards, too."""
        return bool(self._tapped)

    def tap(self, site: Site, answer: Answer, out: Tensor) -> Tensor:
        """Keep a layer's call and its output (B, H, Tq, Dv), for when the gradient of the output is known."""
        if answer.inp is None:
            return out
        if not out.requires_grad:
            out = out.detach().requires_grad_()
        self.taps.append(Tap(site, answer.inp, out))
        return out

    def read_gradients(self, target: Tensor) -> None:
        """Give requests of gradients their arrays: how ``target``, one number, hangs on each tapped output."""
        missed = self._tapped - {id(tap.site.attention) for tap in self.taps}
        if missed or not target.requires_grad:
            raise UnsupportedError("No gradient reaches the attention of this model: its forward pass cuts them off.")
        outputs = [tap.out for tap in self.taps]
        grads = torch.autograd.grad(target, outputs, allow_unused=True, materialize_grads=True)
        for tap, grad in zip(self.taps, grads, strict=True):
            found = gradient_received(tap.inp, grad)
            for collector in self.collectors:
                wanted = isinstance(collector.request, ask.GradReceived) and collector.stack == tap.site.stack
                if wanted and tap.site.layer in collector.layers:
                    collector.put(tap.site.layer, "", found, None)

    def attend(self, site: Site, inp: AttentionInputs, *, gradients: bool) -> Answer:
        """Capture what is asked of this call, and return what becomes of its output."""
        self._visited.add(id(site.attention))
        context = self.context(site.stack, inp.batch)
        own = self.contexts.get("decoder") if site.stack == "cross" else context
        total = own.total if own is not None and own.total is not None else inp.tk
        self._rows[id(site.output)] = max(0, total - inp.tq), inp.batch, inp.tq
        edits = self._row_edits(site, inp, context)
        inp = replace(inp, edits=edits) if edits else inp
        answer = self._answer(site, inp, context, gradients=gradients)
        return replace(answer, inp=inp) if id(site.attention) in self._tapped else answer

    def _answer(self, site: Site, inp: AttentionInputs, context: Context, *, gradients: bool) -> Answer:
        if id(site.attention) in self._calls:
            out = self._captured(site, inp, context)
            if out is not None and not gradients:
                return Answer(out)
        if not inp.edits:
            return Answer()
        heads = self._heads(site, inp.edits)
        if gradients:
            return Answer(None, heads, reference.attend(inp.select(heads)))
        with torch.no_grad():
            return _edited(inp, heads)

    def _heads(self, site: Site, edits: tuple[RowEdit, ...]) -> Tensor:
        """Return the heads (n,) that any edit concerns, worked out anew only where the edits' heads are others."""
        slot, masks = ("heads", site.stack, site.layer), [edit.heads for edit in edits]
        known, heads = self.memory.get(slot, ((), None))
        if len(known) != len(masks) or any(a is not b for a, b in zip(known, masks, strict=True)):
            heads = torch.stack(masks).any(0).nonzero().flatten()
            self.memory[slot] = masks, heads
        return heads  # type: ignore[no-any-return]

    @torch.no_grad()
    def _captured(self, site: Site, inp: AttentionInputs, context: Context) -> Tensor | None:
        """Capture what is asked of this call, and return its output if it was computed on the way."""
        out = None
        for queries, members in self._by_rows(site, inp, context):
            found = self._sweep(site, inp, context, queries, members)
            out = found if queries is None else out
        return out

    def _row_edits(self, site: Site, inp: AttentionInputs, context: Context) -> tuple[RowEdit, ...]:
        """Return what the kernels do at this call, in the order of the edits."""
        members = self._editors.get((site.stack, site.layer), ())
        found = [edit.bind(Call(site, inp, context, self.memory, number)) for number, edit in members]
        return tuple(edit for edit in found if edit is not None)

    def check_visited(self) -> None:
        """Raise UnsupportedError if an attention module that something is asked of never called the engine."""
        asked = set(self._calls)
        for edit in self.edits:
            if isinstance(edit, RowsEdit):
                found = self.sites.stack(edit.stack)
                asked |= {id(found[layer].attention) for layer, _ in edit.heads}
        missed = [self.sites.by_module[module] for module in asked - self._visited]
        if missed:
            where = ", ".join(sorted(f"layer {site.layer} ({site.stack})" for site in missed)[:4])
            raise UnsupportedError(
                f"The attention of {where} did not go through headscope, so nothing was captured or edited there. If "
                'the attention implementation was changed, set it back: model.hf.set_attn_implementation("headscope").'
            )

    def notice(self, site: Site, answer: Answer, out: Tensor | None) -> None:
        """Remember which edits changed a layer's output (B, H, Tq, Dv), None where only the edited one is known.

        Of edits that share a head all count: which of them did it cannot be told.
        """
        effective = self.memory.setdefault(_EFFECTIVE, set())
        waiting = [(n, edit) for n, edit in self._editors.get((site.stack, site.layer), ()) if n not in effective]
        if not waiting or (answer.heads is None and answer.out is None):
            return
        if out is None or answer.heads is None:
            effective.update(number for number, _ in waiting)
            return
        valid = self.context(site.stack, out.shape[0]).valid
        real = None
        if valid is not None and valid.shape[1] == out.shape[2]:
            real = valid.bool().repeat_interleave(out.shape[0] // len(valid), 0).to(out.device)
        changed = set(answer.heads[answer.changes(out, real)].tolist())
        effective.update(n for n, edit in waiting if changed & {h for at, h in edit.heads if at == site.layer})

    def warn_of_nothing(self) -> None:
        """Warn of edits of rows that changed nothing."""
        effective = self.memory.get(_EFFECTIVE, set())
        for number, edit in enumerate(self.edits):
            if not isinstance(edit, (AttentionEdit, KnockOut, LogitEdit)):
                continue
            found = self.memory.get((number, "found"), [True])
            if any(found) and number in effective:
                continue
            kind, heads = type(edit).__name__, f"any of its {len(edit.heads)} heads"
            if not any(found):
                told = (
                    f"found no key to edit in {heads}: it changed nothing. Lower the threshold, or choose other heads."
                )
            else:
                told = (
                    f"changed nothing in {heads}: its rows were not there, or it leaves them as they are. Look at its "
                    "regions, rows and strength."
                )
            warnings.warn(f"{kind} {told}", stacklevel=3)

    def _by_rows(
        self, site: Site, inp: AttentionInputs, context: Context
    ) -> list[tuple[Tensor | None, list[Collector]]]:
        groups: dict[Any, tuple[Tensor | None, list[Collector]]] = {}
        for collector in self._calls.get(id(site.attention), ()):
            queries = context.queries(collector.request.queries, inp.tq)
            key = None if queries is None else tuple(map(tuple, queries.tolist()))
            groups.setdefault(key, (queries, []))[1].append(collector)
        return list(groups.values())

    def _sweep(
        self, site: Site, inp: AttentionInputs, context: Context, queries: Tensor | None, members: list[Collector]
    ) -> Tensor | None:
        rows = inp.tq if queries is None else queries.shape[1]
        needs = Needs(inp, site, context, rows)
        readers = []
        for collector in members:
            if isinstance(collector.request, ask.QK):
                needs.lse = True
            else:
                readers.append((collector, PLANNERS[type(collector.request)](collector.request, needs)))
        safe = None if queries is None else queries.clamp(min=0).to(inp.q.device)
        stats = compute(inp, needs.wants(out=queries is None), safe)
        blank = blank_rows(queries, context.valid, rows)
        for collector, read in readers:
            for suffix, value in read(stats).items():
                per_query = "query" in collector.dims()
                collector.put(site.layer, suffix, value, blank if per_query else None)
        for collector in members:
            if isinstance(collector.request, ask.QK):
                self.stored.setdefault(collector.request.key, {})[site.layer] = bare(inp)
        return stats.out

    # -- around the attention function -------------------------------------------------------------------------

    def install(self) -> None:
        """Install the hooks of captures and edits outside attention."""
        try:
            for edit in self.edits:
                self._handles.extend(edit.hooks(self))
            for collector in self.collectors:
                self._handles.extend(self._watch(collector))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove all hooks."""
        while self._handles:
            self._handles.pop().remove()

    def _watch(self, collector: Collector) -> list[Any]:
        found = self.sites.by_stack[collector.stack]
        request, handles = collector.request, []
        for layer in collector.layers:
            if isinstance(request, ask.HeadOutput):
                site = found[layer]
                take = self._taker(collector, layer, partial(heads_first, site=site))
                handles.append(site.output.register_forward_pre_hook(_on_input(take)))
            elif isinstance(request, ask.MlpActivation):
                mlp = found[layer].mlp
                if mlp is None:
                    raise RequestError(
                        f"Layer {layer} has no MLP activation of its own (experts fused into one module, or no MLP): "
                        "ask for Residual() instead, or for other layers."
                    )
                handles.append(mlp.register_forward_pre_hook(_on_input(self._taker(collector, layer, _same))))
            elif isinstance(request, ask.Residual):
                take = self._taker(collector, layer, _same)
                if layer in found:
                    handles.append(found[layer].block.register_forward_pre_hook(_on_stream(take), with_kwargs=True))
                else:
                    handles.append(found[layer - 1].block.register_forward_hook(_on_output(take)))
        return handles

    def _taker(self, collector: Collector, layer: int, shape: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
        def take(x: Tensor) -> None:
            context = self.context(collector.stack, x.shape[0])
            if x.dim() == 2:  # OPT flattens batch and positions before its MLP
                x = x.view(context.batch, -1, x.shape[-1])
            value = shape(x)
            length = value.shape[-2]
            queries = context.queries(collector.request.queries, length)
            if queries is not None:
                index = queries.clamp(min=0).to(value.device)
                index = index.view(len(index), *[1] * (value.dim() - 3), -1, 1)
                value = value.gather(-2, index.expand(*value.shape[:-2], -1, value.shape[-1]))
            collector.put(layer, "", value, blank_rows(queries, context.valid, length))

        return take


def _edited(inp: AttentionInputs, heads: Tensor) -> Answer:
    """Compute the rows that edits change, of some heads (n,)."""
    if inp.tq == 1:
        return Answer(None, heads, step(inp, heads))
    rows = _edited_rows(inp)
    part = inp.select(heads)
    if rows is None:
        return Answer(None, heads, compute(part, Wants(out=True)).out)
    return Answer(None, heads, compute(part, Wants(out=True), rows.clamp(min=0)).out, rows)


def _edited_rows(inp: AttentionInputs) -> Tensor | None:
    """Return the query rows that any edit changes (B, m), filled up with −1, or None for all."""
    masks = [edit.rows for edit in inp.edits if edit.rows is not None]
    if len(masks) < len(inp.edits):
        return None
    some = torch.stack([mask.expand(inp.batch, -1) for mask in masks]).any(0)
    counts = some.sum(-1)
    first = some.int().argsort(dim=-1, descending=True, stable=True)[:, : int(counts.max())]
    return torch.where(torch.arange(first.shape[1], device=first.device) < counts[:, None], first, -1)


def _same(x: Tensor) -> Tensor:
    return x


def _on_input(take: Callable[[Tensor], None]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        take(args[0])

    return hook


def _on_stream(take: Callable[[Tensor], None]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(args[0] if args else kwargs["hidden_states"])

    return hook


def _on_output(take: Callable[[Tensor], None]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        take(output if isinstance(output, Tensor) else output[0])

    return hook
