"""What a model writes without edits and with them, and how likely it finds either text in either state."""

from __future__ import annotations

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


def compare_continuations(
    model: Any, prompt: Prompt | str, *methods: Method | Edit, max_new_tokens: int = 40
) -> Comparison:
    """Continue a prompt greedily without edits and under them, and score each text in the other state.

    A text is scored step by step behind the prompt, as it would be written: keys that a method finds in the prompt
    stay found.

    Raises
    ------
    RequestError
        If there is no method or edit.
    PromptError
        If the prompt and the new tokens pass the context.
    """
    if not methods:
        raise RequestError("There is nothing to compare: pass at least one method or edit.")
    base = model.trace(prompt, max_new_tokens=max_new_tokens)
    with model.edited(*methods):
        steered = model.trace(prompt, max_new_tokens=max_new_tokens)
    texts = {"base": tuple(base.tokens), "steered": tuple(steered.tokens)}
    rows = {("base", "base"): _rows(base), ("steered", "steered"): _rows(steered)}
    if texts["base"] == texts["steered"]:
        rows["base", "steered"], rows["steered", "base"] = rows["steered", "steered"], rows["base", "base"]
    else:
        rows["steered", "base"] = _rows(model.trace(prompt, teacher=texts["steered"]))
        with model.edited(*methods):
            rows["base", "steered"] = _rows(model.trace(prompt, teacher=texts["base"]))
    made = {
        name: Continuation(
            found.text,
            ids,
            tuple(str(model.tokenizer.decode([i])) for i in ids),
            _of(rows[name, "base"], ids),
            _of(rows[name, "steered"], ids),
        )
        for name, ids, found in (("base", texts["base"], base), ("steered", texts["steered"], steered))
    }
    first, other = rows["steered", "steered"][0], rows["base", "base"][0]
    # Impossible tokens, as masked vocabularies have, are 0 · -inf.
    kl = torch.where(first.isfinite(), first.exp() * (first - other), 0.0).sum()
    changed = not all(torch.equal(rows[name, "base"], rows[name, "steered"]) for name in texts)
    return Comparison(made["base"], made["steered"], _parted(*texts.values()), float(kl), changed)


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
