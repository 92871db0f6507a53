"""Prompts read once, from which answers go on as often as wanted.

A branch decodes one token at a time, as generation does: keys that an edit found in the prompt stay found, and an edit
of the last row acts on the row of each new token. Reading the prompt is what costs, and it is done once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headscope.attention.engine import active
from headscope.attention.session import Session
from headscope.errors import PromptError, RequestError
from headscope.models.forward import Prepared, check_budget, check_finite, prepare
from headscope.models.generation import end_tokens

if TYPE_CHECKING:
    from headscope.attention.context import Context
    from headscope.models.prompt import Prompt

Stop = Callable[[str], bool]
"""Whether an answer is over, given its text so far."""


class Reading:
    """Prompts read as one left-padded batch, under the edits in force.

    Parameters
    ----------
    model
        A decoder with a language-model head.
    prompts
        What is read.
    room
        Most tokens that will follow.

    Attributes
    ----------
    logits
        Of the token after each prompt, float32 (B, V).
    idle
        Whether an edit looked for keys and found none.

    Raises
    ------
    PromptError
        If prompts and answers pass the model's context.
    """

    def __init__(self, model: Any, prompts: Sequence[Prompt], room: int = 1) -> None:
        self.model = model
        self.prepared: Prepared = prepare(model, list(prompts))
        limit = model.spec.n_ctx
        if limit is not None and self.prepared.length + room - 1 > limit:
            raise PromptError(
                f"{self.prepared.length} prompt tokens and {room} of an answer pass the context of {limit}. "
                "Shorten the prompts or the answers."
            )
        for context in self.prepared.contexts.values():
            context.prompt_length = self.prepared.length
        self.memory: dict[Hashable, Any] = {}
        session = Session(model.sites, (), model.edits, self.prepared.contexts, self.memory)
        check_budget(model, self.prepared, session, "last")
        self.logits, self.cache = _forward(model, session, self.prepared.tensors)
        session.check_visited()
        check_finite(model, self.logits[:, None])
        looked = [found for slot, found in self.memory.items() if isinstance(slot, tuple) and slot[1:] == ("found",)]
        self.idle = any(not any(found) for found in looked)

    def __len__(self) -> int:
        return self.prepared.batch

    @property
    def repeatable(self) -> bool:
        """Whether a branch can take several answers to one prompt at once; states of linear attention cannot."""
        return all(hasattr(layer, "batch_repeat_interleave") for layer in self.cache.layers)

    def branch(self, copies: int = 1) -> Branch:
        """Return a decoding that goes on from here with ``copies`` answers to each prompt, side by side."""
        return Branch(self, copies)


class Branch:
    """Answers that grow token by token; the reading that it sprang from is left as it was."""

    def __init__(self, reading: Reading, copies: int) -> None:
        self.model = reading.model
        self.memory = dict(reading.memory)
        self.cache = copy.deepcopy(reading.cache)
        tensors = reading.prepared.tensors
        self._mask, position = tensors.get("attention_mask"), tensors.get("position_ids")
        self._position = None if position is None else position[:, -1:]
        if copies > 1:
            self.cache.batch_repeat_interleave(copies)
            self._mask = None if self._mask is None else self._mask.repeat_interleave(copies, 0)
            self._position = None if self._position is None else self._position.repeat_interleave(copies, 0)
        own: dict[int, Context] = {id(c): replace(c) for c in reading.prepared.contexts.values()}
        self._contexts = {stack: own[id(c)] for stack, c in reading.prepared.contexts.items()}
        self._moving = list(own.values())

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Take one more token of each answer; return the logits of the next, float32 (B · copies, V)."""
        tensors = {"input_ids": torch.tensor(list(tokens), device=self.model.device)[:, None]}
        if self._mask is not None:
            self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
            tensors["attention_mask"] = self._mask
        if self._position is not None:
            self._position = self._position + 1
            tensors["position_ids"] = self._position
        for context in self._moving:
            context.total = (context.total or 0) + 1
        session = Session(self.model.sites, (), self.model.edits, self._contexts, self.memory)
        logits, self.cache = _forward(self.model, session, tensors, past_key_values=self.cache)
        check_finite(self.model, logits[:, None])
        return logits


def _forward(model: Any, session: Session, tensors: dict[str, Tensor], **more: Any) -> tuple[Tensor, Any]:
    """Return the last position's logits (B, V) and the cache."""
    if "logits_to_keep" in model.hf.forward.__code__.co_varnames:
        more["logits_to_keep"] = 1
    with torch.no_grad(), active(session):
        output = model.hf(**tensors, use_cache=True, **more)
    if getattr(output, "logits", None) is None or "past_key_values" not in output:
        raise RequestError(f"{model.name} has no language-model head to answer with.")
    return output.logits[:, -1].float(), output.past_key_values


@dataclass(frozen=True)
class Written:
    """One greedy answer.

    Parameters
    ----------
    text
        What was written, up to the token that ended it.
    length
        Its tokens, an end-of-sequence token not counted.
    ended
        Whether it ended by itself: not where the limit cut it off.
    """

    text: str
    length: int
    ended: bool


def write(reading: Reading, limit: int, stops: Sequence[Stop]) -> list[Written]:
    """Continue each prompt greedily, until its ``stop`` or an end-of-sequence token, ``limit`` tokens at most."""
    model, ends = reading.model, end_tokens(reading.model)
    tokens: list[list[int]] = [[] for _ in stops]
    texts, done = [""] * len(stops), [False] * len(stops)
    logits, branch = reading.logits, reading.branch()
    for step in range(limit):
        chosen = logits.argmax(-1).tolist()
        for row, token in enumerate(chosen):
            if done[row]:
                continue
            if token in ends:
                done[row] = True
                continue
            tokens[row].append(token)
            texts[row] = str(model.tokenizer.decode(tokens[row], skip_special_tokens=True))
            done[row] = bool(stops[row](texts[row]))
        if all(done) or step == limit - 1:
            break
        logits = branch.step(chosen)
    return [Written(*found) for found in zip(texts, map(len, tokens), done, strict=True)]
