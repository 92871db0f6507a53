"""What editing one head would do to an answer, to first order, for all heads at once.

The prompt is read twice, whatever the number of heads and candidates. The first reading is differentiated: it gives
the gradient of the answer's log-probability by every head's output z. In the second all heads are edited, and every
output projection still receives the untouched z, so that no layer sees what an earlier one did. A head's effect is
Σ gradient · (z' − z) over positions.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from headscope.attention.engine import active
from headscope.attention.session import Session
from headscope.interventions.answers import candidates
from headscope.interventions.training import Example, frozen
from headscope.models.forward import check_finite, prepare

if TYPE_CHECKING:
    from headscope.attention.context import Context
    from headscope.attention.edits import Edit
    from headscope.interventions.base import Method

Place = tuple[int, int]
"""Layer, and which of its calls: the prompt first, then each token of the answers."""
Take = Callable[[Place, Tensor], Tensor]


def estimate(model: Any, everywhere: Method, item: Example) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the first-order effect of a method on each head alone, (layers, heads), in nats.

    Parameters
    ----------
    everywhere
        The method on all heads that are of interest.
    item
        The effect is that on the log-probability of its right answer, among its candidates where it has some. Answers
        are read token by token, as they are when they are measured.
    """
    sites = model.sites.stack(None)
    z: dict[Place, Tensor] = {}

    def keep(place: Place, x: Tensor) -> Tensor:
        # Weights are frozen: the first head's output is where the graph begins.
        z[place] = x if x.requires_grad else x.detach().requires_grad_()
        return z[place]

    with frozen(model.hf), torch.enable_grad():
        totals = _Reader(model, (), keep).totals(item)
        value = totals[0] - totals.logsumexp(0) if len(totals) > 1 else totals[0]
        gradients = dict(zip(z, torch.autograd.grad(value, list(z.values()), allow_unused=True), strict=True))
    effects: dict[int, Tensor] = {}

    def compare(place: Place, x: Tensor) -> Tensor:
        base, gradient = z[place].detach(), gradients[place]
        if gradient is not None:
            product = gradient.double() * (x.double() - base.double())
            heads = sites[place[0]].heads
            effect = product.reshape(-1, heads, product.shape[-1] // heads).sum((0, 2)).cpu()
            effects[place[0]] = effects[place[0]] + effect if place[0] in effects else effect
        return base  # the next layer reads what it would without edits

    with torch.no_grad():
        _Reader(model, everywhere.edits(model), compare).totals(item)
    grid = np.full((model.spec.n_layers, model.spec.n_heads), np.nan)
    for layer, values in effects.items():
        grid[layer, : len(values)] = values.numpy()
    return grid


class _Reader:
    """Reads prompts and answers under edits; what every output projection reads passes through ``take``."""

    def __init__(self, model: Any, edits: Sequence[Edit], take: Take) -> None:
        self.model, self.edits, self.take = model, edits, take
        self.calls: Counter[int] = Counter()

    def totals(self, item: Example) -> Tensor:
        """Return the log-probability of every candidate (K,), the right one first."""
        answers = list(candidates(item))
        if all(len(ids) == 1 for ids in answers):
            first = self._prompt(item, cache=False).first
            return torch.stack([first[ids[0]] for ids in answers])
        start = self._prompt(item)
        if all(hasattr(layer, "batch_repeat_interleave") for layer in start.cache.layers):
            return self._answers(answers, start)
        # States of linear attention cannot be shared out: the prompt is read for each answer.
        starts = [start, *(self._prompt(item) for _ in answers[1:])]
        return torch.cat([self._answers([ids], begun) for ids, begun in zip(answers, starts, strict=True)])

    def _prompt(self, item: Example, cache: bool = True) -> _Start:
        prepared = prepare(self.model, item.prompt)
        for context in prepared.contexts.values():
            context.prompt_length = prepared.length
        memory: dict[Hashable, Any] = {}
        rows, held = self._forward(prepared.tensors, prepared.contexts, memory, use_cache=cache)
        return _Start(rows[0], held, prepared.contexts, memory)

    def _answers(self, answers: Sequence[Sequence[int]], start: _Start) -> Tensor:
        """Go on with all answers side by side, token by token."""
        totals = torch.stack([start.first[ids[0]] for ids in answers])
        cache = start.cache
        if len(answers) > 1:
            cache.batch_repeat_interleave(len(answers))
        for at in range(1, max(map(len, answers))):
            # Shorter answers go on with their last token, which nothing counts.
            tokens = torch.tensor([[ids[min(at, len(ids)) - 1]] for ids in answers], device=self.model.device)
            for context in {id(context): context for context in start.contexts.values()}.values():
                context.total = (context.total or 0) + 1
            given = {"use_cache": True, "past_key_values": cache}
            rows, cache = self._forward({"input_ids": tokens}, start.contexts, start.memory, **given)
            more = [rows[k, ids[at]] if at < len(ids) else rows.new_zeros(()) for k, ids in enumerate(answers)]
            totals = totals + torch.stack(more)
        return totals

    def _forward(
        self, tensors: dict[str, Tensor], contexts: dict[str, Context], memory: dict[Hashable, Any], **options: Any
    ) -> tuple[Tensor, Any]:
        """Return log-probabilities of the next token (B, V), and the cache."""
        hf = self.model.hf
        if "logits_to_keep" in hf.forward.__code__.co_varnames:
            options["logits_to_keep"] = 1
        # Hooks run in the order of their making: ours last, so that they see what the edits leave.
        with active(Session(self.model.sites, (), self.edits, contexts, memory)), self._watching():
            output = hf(**tensors, **options)
        logits: Tensor = output.logits[:, -1]
        check_finite(self.model, logits[:, None].detach())
        return logits.double().log_softmax(-1), output.get("past_key_values")

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        handles: list[Any] = []

        def hook(layer: int) -> Any:
            def on_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
                self.calls[layer] += 1
                return (self.take((layer, self.calls[layer]), args[0]), *args[1:])

            return on_input

        try:
            for layer, site in self.model.sites.stack(None).items():
                handles.append(site.output.register_forward_pre_hook(hook(layer)))
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class _Start:
    """A prompt that was read: log-probabilities of the next token (V,), cache, contexts, what edits remember."""

    first: Tensor
    cache: Any
    contexts: dict[str, Context]
    memory: dict[Hashable, Any]
