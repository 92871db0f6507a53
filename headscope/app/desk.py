"""What all pages of one application share: models, runs and the workspace."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from headscope.app.jobs import ThreadManager, check
from headscope.app.runs import Recipe, RunCache
from headscope.app.settings import Settings
from headscope.app.workspace import Workspace
from headscope.errors import MemoryBudgetError, ModelError, PromptError

if TYPE_CHECKING:
    from collections.abc import Callable

    from headscope.models.model import Model
    from headscope.report.view import View

LONGEST_TOKEN = 64
"""Characters per token that no text exceeds in the mean: what is longer than the context for sure is not tokenised."""


@dataclass
class _Loaded:
    lock: threading.RLock = field(default_factory=threading.RLock)
    model: Model | None = None


class Desk:
    """Models, runs and files of one application. Thread-safe.

    A model works for one thread at a time: edits are put into it, and its work takes all processors anyway.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.workspace = Workspace(settings.workspace)
        self.runs = RunCache(settings.cache_bytes)
        self.jobs = ThreadManager(str(self.workspace.path(".app/jobs")))
        self._models: OrderedDict[str, _Loaded] = OrderedDict()
        self._lock = threading.Lock()

    # -- models ------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the models that pages may choose from, the first one first."""
        from headscope.models.carried import list_models

        fetched = [str(known["name"]) for known in list_models() if known["fetched"]]
        return list(dict.fromkeys([self.settings.model, *self.settings.allowed, *fetched]))

    def check_model(self, name: str) -> str:
        """Return the name of a model that pages may load.

        Raises
        ------
        ModelError
            If it is not on the list.
        """
        name = name.strip()
        if name and (self.settings.any_model or name in self.names()):
            return name
        raise ModelError(
            f"This server does not load {name!r}: pages may choose from {', '.join(self.names())}. Start it with "
            f"--allow {name or 'NAME'}, or with --allow-any-model if nobody but you can reach it."
        )

    def loaded(self) -> list[str]:
        """Return the models in memory."""
        with self._lock:
            return [name for name, held in self._models.items() if held.model is not None]

    @contextlib.contextmanager
    def model(self, name: str) -> Iterator[Model]:
        """Yield a model that is nobody else's inside the block; waits for its turn, and loads it if need be.

        Raises
        ------
        ModelError
            If it is not on the list, or cannot be loaded.
        """
        name = self.check_model(name)
        with self._lock:
            held = self._models.setdefault(name, _Loaded())
            self._models.move_to_end(name)
        while not held.lock.acquire(timeout=0.1):
            check()
        try:
            if held.model is None:
                self._make_room()
                held.model = self._load(name)
            yield held.model
        finally:
            held.lock.release()

    def _load(self, name: str) -> Model:
        from headscope.models.load import load

        own = name == self.settings.model
        asked = self.settings
        return load(name, device=asked.device, dtype=asked.dtype, revision=asked.revision if own else None)

    def _make_room(self) -> None:
        """Let models go that nobody uses, the least recently used first, until one more may be kept."""
        with self._lock:
            held = [(name, found) for name, found in self._models.items() if found.model is not None]
            for name, found in held[: max(0, len(held) - self.settings.models_kept + 1)]:
                if found.lock.acquire(blocking=False):
                    del self._models[name]
                    found.lock.release()

    # -- runs --------------------------------------------------------------------------------------------------

    def look(self, recipe: Recipe, progress: Callable[[str, int, int], None] | None = None) -> View:
        """Run a recipe and keep its view; one that is kept already is returned at once.

        Raises
        ------
        PromptError
            If there is no text, or more than the context holds.
        MemoryBudgetError
            If the view would be larger than all that may be kept.
        """
        from headscope.report.view import capture

        tell = progress or (lambda task, done, total: None)
        tell("Waiting for the model", 0, 1)
        with self.model(recipe.model) as model:
            if recipe.id in self.runs:
                return self.runs.get(recipe.id)
            limit = model.spec.n_ctx
            if limit is not None and len(recipe.text) > LONGEST_TOKEN * limit:
                raise PromptError(f"The prompt has {len(recipe.text)} characters, the context holds {limit} tokens.")
            prompt = recipe.prompt(model)
            length = len(prompt) + recipe.new_tokens
            if limit is not None and length > limit:
                raise PromptError(
                    f"{len(prompt)} prompt tokens and {recipe.new_tokens} new ones pass the context of {limit}. "
                    "Shorten the prompt, or write fewer tokens."
                )
            size = capture.estimate(model, length)
            if size > self.runs.limit:
                raise MemoryBudgetError(
                    f"The view of {length} tokens of {model.name} takes {size / 1e9:.1f} GB; this server keeps "
                    f"{self.runs.limit / 1e9:.1f}. Shorten the prompt, or start it with a larger --cache-gb."
                )
            self.runs.make_room(size)
            edits = self.edits(recipe.edit, model) if recipe.edit else ()
            with model.edited(*edits) if edits else contextlib.nullcontext():
                written = prompt if not recipe.new_tokens else _written(model, prompt, recipe.new_tokens, tell)
                view = capture.look(
                    model, written, progress=lambda done, total: tell("Reading layers", done, total), check=check
                )
        recipe.save(self.workspace)
        self.runs.put(recipe.id, view)
        return view

    def edits(self, file: str, model: Model) -> tuple[Any, ...]:
        """Return the methods and edits of a file in the workspace.

        Raises
        ------
        RequestError, CheckpointError
            If there is no such file, or it was made for another model.
        """
        from headscope.interventions.store import load

        return load(self.workspace.existing(file, (".json",)), model)


def _written(model: Any, prompt: Any, count: int, tell: Callable[[str, int, int], None]) -> Any:
    """Return the prompt with what the model writes after it as region ``generated``."""
    from headscope.models.prompt import Prompt

    steps = 0

    def step(text: str) -> bool:
        nonlocal steps
        check()
        steps += 1
        tell("Writing", steps, count)
        return False

    trace = model.trace(prompt, max_new_tokens=count, stop=step)
    pieces = (*prompt.pieces, *(str(model.tokenizer.decode([token])) for token in trace.tokens))
    text, offsets = prompt.text, list(prompt.offsets)
    for piece in pieces[len(prompt) :]:
        offsets.append((len(text), len(text) + len(piece)))
        text += piece
    ids = (*prompt.ids, *trace.tokens)
    made = replace(prompt, ids=ids, text=text, offsets=tuple(offsets), pieces=pieces)
    assert isinstance(made, Prompt)
    return made.with_regions({"generated": range(len(prompt), len(ids))})
