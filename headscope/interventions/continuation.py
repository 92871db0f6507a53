"""What a model writes without edits and with them, and how likely it finds either text in either state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from headscope.errors import RequestError

if TYPE_CHECKING:
    from headscope.attention.edits import Edit
    from headscope.interventions.base import Method
    from headscope.models.prompt import Prompt
    from headscope.probes.base import Progress

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Continuation:
    """A text that follows a prompt, with the log-probability of each token in both states of the model.

    Parameters
    ----------
    text
        The continuation.
    ids, tokens
        Its T token ids, and what each reads.
    base, steered
        (T,) log-probability of each token given those before it, in nats: without the edits and under them.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    base: Floats
    steered: Floats

    @property
    def difference(self) -> Floats:
        """How much likelier each token is under the edits (T,), in nats."""
        return self.steered - self.base

    @property
    def gain(self) -> float:
        """How much likelier the whole text is under the edits, in nats."""
        return float(self.difference.sum())


@dataclass(frozen=True, eq=False)
class Comparison:
    """Both continuations of one prompt.

    Parameters
    ----------
    base, steered
        What the model writes without the edits and under them, greedily.
    diverges
        The first step at which they differ; None if they are the same.
    kl
        KL(steered ‖ base) of the first token, in nats: how far the edits move the next-token distribution.
    changed
        Whether any log-probability changed at all.
    """

    base: Continuation
    steered: Continuation
    diverges: int | None
    kl: float
    changed: bool

    def _repr_html_(self) -> str:
        """Return both texts side by side, as notebooks show them."""
        from headscope.report.continuations import fragment

        return fragment(self)


def compare_continuations(
    model: Any,
    prompt: Prompt | str,
    *methods: Method | Edit,
    max_new_tokens: int = 40,
    progress: Progress | None = None,
) -> Comparison:
    """Continue a prompt greedily without edits and under them, and score each text in the other state.

    A text is scored step by step behind the prompt, as it would be written: keys that a method finds in the prompt
    stay found.

    Parameters
    ----------
    progress
        Called with (stage, tokens done, tokens in all) at every layer of every step; what it raises ends the work.

    Raises
    ------
    RequestError
        If there is no method or edit.
    PromptError
        If the prompt and the new tokens pass the context.
    """
    if not methods:
        raise RequestError("There is nothing to compare: pass at least one method or edit.")
    return Baseline(model, prompt, max_new_tokens, progress).compare(*methods)


class Baseline:
    """The model without edits on one prompt, read once for any number of comparisons.

    Parameters
    ----------
    max_new_tokens, progress
        As for ``compare_continuations``.
    """

    def __init__(
        self, model: Any, prompt: Prompt | str, max_new_tokens: int = 40, progress: Progress | None = None
    ) -> None:
        self.model, self.prompt, self.limit, self.progress = model, prompt, max_new_tokens, progress
        self._known: dict[tuple[int, ...], torch.Tensor] = {}
        with self._told("Writing without the edit", max_new_tokens):
            written = model.trace(prompt, max_new_tokens=max_new_tokens)
        self.text, self.ids = str(written.text), tuple(written.tokens)
        self._known[self.ids] = _rows(written)

    def compare(self, *methods: Method | Edit) -> Comparison:
        """Return what the model writes under the methods beside what it writes without."""
        with self.model.edited(*methods), self._told("Writing under the edit", self.limit):
            steered = self.model.trace(self.prompt, max_new_tokens=self.limit)
        ids = tuple(steered.tokens)
        own = _rows(steered)
        back = own if ids == self.ids else self.rows(self.ids, *methods)
        base = self._made(self.text, self.ids, self.rows(self.ids), back)
        made = self._made(str(steered.text), ids, self.rows(ids), own)
        first, other = own[0], self.rows(self.ids)[0]
        # Impossible tokens, as masked vocabularies have, are 0 · -inf.
        kl = torch.where(first.isfinite(), first.exp() * (first - other), 0.0).sum()
        changed = not (torch.equal(back, self.rows(self.ids)) and torch.equal(own, self.rows(ids)))
        return Comparison(base, made, _parted(self.ids, ids), float(kl), changed)

    def score(self, ids: tuple[int, ...], *methods: Method | Edit) -> Continuation:
        """Return a text of the caller's own, scored without the methods and under them."""
        text = str(self.model.tokenizer.decode(list(ids)))
        return self._made(text, ids, self.rows(ids), self.rows(ids, *methods))

    def rows(self, ids: tuple[int, ...], *methods: Method | Edit) -> torch.Tensor:
        """Return log-probabilities of every token at each step of a text (T, vocabulary); those without edits stay."""
        if not methods:
            if ids not in self._known:
                with self._told("Scoring without the edit", len(ids)):
                    self._known[ids] = _rows(self.model.trace(self.prompt, teacher=ids))
            return self._known[ids]
        with self.model.edited(*methods), self._told("Scoring under the edit", len(ids)):
            return _rows(self.model.trace(self.prompt, teacher=ids))

    def _made(self, text: str, ids: tuple[int, ...], base: torch.Tensor, steered: torch.Tensor) -> Continuation:
        tokens = tuple(str(self.model.tokenizer.decode([i])) for i in ids)
        return Continuation(text, ids, tokens, _of(base, ids), _of(steered, ids))

    @contextlib.contextmanager
    def _told(self, stage: str, total: int) -> Iterator[None]:
        """Tell the progress at every token, and in between at every layer: a long prompt takes a while to read."""
        if (tell := self.progress) is None:
            yield
            return
        done = -1

        def step(module: Any, given: Any) -> None:
            nonlocal done
            done += 1
            tell(stage, done, total)

        def layer(module: Any, given: Any) -> None:
            tell(stage, max(done, 0), total)

        sites = self.model.sites.stack(None).values()
        hooks = [self.model.hf.register_forward_pre_hook(step)]
        hooks += [site.attention.register_forward_pre_hook(layer) for site in sites]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _rows(trace: Any) -> torch.Tensor:
    """Log-probabilities of every token at each step (T, vocabulary)."""
    logits: torch.Tensor = trace.logits[0]
    return logits.double().log_softmax(-1)


def _of(rows: torch.Tensor, ids: tuple[int, ...]) -> Floats:
    return rows[range(len(ids)), list(ids)].numpy()


def _parted(a: tuple[int, ...], b: tuple[int, ...]) -> int | None:
    """Return the first place at which two sequences differ; the end of the shorter if it begins the longer."""
    if a == b:
        return None
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
