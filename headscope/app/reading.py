"""What tokenizers say about a prompt while its model is at work, or before it runs."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from headscope.app.desk import LONGEST_TOKEN
from headscope.app.runs import Recipe
from headscope.errors import HeadscopeError, PromptError
from headscope.models.prompt import Prompt, build_prompt

if TYPE_CHECKING:
    from headscope.app.desk import Desk

KEPT = 8
"""Tokenizers that are kept."""


@dataclass(frozen=True)
class Spec:
    """The part of a model's description that a prompt asks for."""

    n_ctx: int | None


@dataclass(frozen=True)
class Reader:
    """A model's tokenizer apart from the model: enough to make prompts and data with.

    Parameters
    ----------
    name
        Name of the model.
    tokenizer
        A copy of its own, because tokenizers are not thread-safe; None if the model came without.
    spec
        Has the length of the context. A prompt is not checked against it: how far it is over is worth knowing.
    """

    name: str
    tokenizer: Any
    spec: Spec

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise PromptError(f"{self.name} came without a tokenizer, so it cannot read text.")
        return self.tokenizer

    def prompt(self, template: str, *, chat: bool = False, system: str | None = None, **fills: Any) -> Prompt:
        """Return a prompt, however long."""
        return build_prompt(self._need_tokenizer(), template, fills=fills, chat=chat, system=system)

    def long(self) -> Reader:
        """Return a reader that has no limit."""
        return replace(self, spec=Spec(None))


class Readers:
    """The readers of one application. Thread-safe."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.busy = threading.RLock()
        """Held by who tokenises."""
        self._known: OrderedDict[str, Reader] = OrderedDict()
        self._waiting = threading.Lock()

    def get(self, name: str) -> Reader:
        """Return the reader of a model; loads the model if need be, and waits for it."""
        if (found := self._known.get(name)) is None:
            with self.desk.model(name) as model:
                tokenizer = copy.deepcopy(model.tokenizer)
                found = Reader(name, tokenizer, Spec(model.spec.n_ctx))
            self._known[name] = found
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return found

    def at_hand(self, name: str) -> Reader | None:
        """Return a reader if it can be had without loading, and without more than one thread waiting."""
        if name in self._known:
            return self._known[name]
        if name not in self.desk.loaded() or not self._waiting.acquire(blocking=False):
            return None
        try:
            return self.get(name)
        finally:
            self._waiting.release()

    def count(self, recipe: Recipe) -> dict[str, Any]:
        """Return how many tokens a prompt and its regions have, or why it makes none.

        The keys are ``state`` (``"counted"``, ``"unread"`` while no tokenizer is at hand, ``"wrong"``), ``tokens``,
        ``limit``, ``regions`` (name to number of tokens), ``chats`` (whether there is a chat template), ``error``.
        """
        reader = self.at_hand(recipe.model)
        if reader is None:
            return {"state": "unread", "loaded": recipe.model in self.desk.loaded()}
        limit = reader.spec.n_ctx
        known = {"limit": limit, "chats": getattr(reader.tokenizer, "chat_template", None) is not None}
        if not recipe.text.strip():
            return {"state": "counted", "tokens": 0, "regions": {}, **known}
        if limit is not None and len(recipe.text) > LONGEST_TOKEN * limit:
            error = f"The text has {len(recipe.text):,} characters, far more than the context of {limit:,} tokens."
            return {"state": "wrong", "error": error, **known}
        try:
            with self.busy:
                prompt = recipe.prompt(reader.long())
        except HeadscopeError as error:
            return {"state": "wrong", "error": str(error), **known}
        counted = {name: len(positions) for name, positions in prompt.regions.items() if name != "bos"}
        return {"state": "counted", "tokens": len(prompt), "regions": counted, **known}
