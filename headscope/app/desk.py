"""What all pages of one application share: models, runs and the workspace."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headscope.app.jobs import ThreadManager, check
from headscope.app.runs import Recipe, RunCache
from headscope.app.settings import Settings
from headscope.app.workspace import Workspace
from headscope.errors import MemoryBudgetError, ModelError, OutputError, PromptError
from headscope.files import sha256_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from headscope.models.model import Model
    from headscope.models.prompt import Prompt
    from headscope.models.spec import ModelSpec
    from headscope.report.view import View

log = logging.getLogger(__name__)

LONGEST_TOKEN = 64
"""Characters per token that no text exceeds in the mean: what is longer than the context for sure is not tokenised."""


@dataclass
class _Loaded:
    """``depth`` is how many blocks of the thread that holds the lock use the model."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    model: Model | None = None
    depth: int = 0


class Desk:
    """Models, runs and files of one application. Thread-safe.

    A model works for one thread at a time: edits are put into it, and its work takes all processors anyway.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.workspace = Workspace(settings.workspace)
        self.runs = RunCache(settings.cache_bytes)
        self.jobs = ThreadManager()
        self._models: OrderedDict[str, _Loaded] = OrderedDict()
        self._lock = threading.Lock()
        self._mine = threading.local()

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

    def spec(self, name: str) -> ModelSpec | None:
        """Return what a model in memory is made of; None if it is not there."""
        with self._lock:
            held = self._models.get(name)
            model = None if held is None else held.model
        return None if model is None else model.spec

    @contextlib.contextmanager
    def model(self, name: str) -> Iterator[Model]:
        """Yield a model that is nobody else's inside the block; waits for its turn, and loads it if need be.

        Raises
        ------
        ModelError
            If it is not on the list, or cannot be loaded.
        """
        name = self.check_model(name)
        check()
        mine: str | None = getattr(self._mine, "name", None)
        if mine not in (None, name):
            # Two threads that each hold the model which the other wants would wait for ever.
            raise ModelError(f"This job holds {mine!r}: let it go before you take {name!r}.")
        held = self._take(name)
        held.depth, self._mine.name = held.depth + 1, name
        try:
            if held.model is None:
                self._make_room()
                held.model = self._load(name)
            yield held.model
        finally:
            held.depth -= 1
            self._mine.name = name if held.depth else None
            if held.model is None:
                with self._lock:
                    del self._models[name]
            held.lock.release()

    def _take(self, name: str) -> _Loaded:
        while True:
            with self._lock:
                held = self._models.setdefault(name, _Loaded())
                self._models.move_to_end(name)
            while not held.lock.acquire(timeout=0.1):
                check()
            with self._lock:
                if self._models.get(name) is held:
                    return held
            held.lock.release()  # it was let go while this thread waited

    def _load(self, name: str) -> Model:
        from headscope.models.load import load

        own = name == self.settings.model
        asked = self.settings
        model = load(name, device=asked.device, dtype=asked.dtype, revision=asked.revision if own else None)
        _ = model.fingerprint  # of the weights before any edit
        return model

    def _make_room(self) -> None:
        """Let models go that nobody uses, the least recently used first, until one more may be kept."""
        gone = False
        with self._lock:
            held = [(name, found) for name, found in self._models.items() if found.model is not None]
            for name, found in held[: max(0, len(held) - self.settings.models_kept + 1)]:
                if found.lock.acquire(blocking=False):
                    if not found.depth:
                        del self._models[name]
                        gone = True
                    found.lock.release()
        if gone:
            del held, found
            gc.collect()  # modules refer to each other in circles: their memory is needed now

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
        edit = self._hash(recipe.edit)
        if (kept := self.runs.find(recipe.id, edit)) is not None:
            return kept
        tell("Waiting for the model", 0, 1)
        with self.model(recipe.model) as model:
            if (kept := self.runs.find(recipe.id, edit)) is not None:
                return kept
            prompt = self.prompt(recipe, model)
            size = capture.estimate(model, len(prompt) + recipe.new_tokens)
            if size > self.runs.limit:
                raise MemoryBudgetError(
                    f"The view of {len(prompt) + recipe.new_tokens} tokens of {model.name} takes {size / 1e9:.1f} GB; "
                    f"this server keeps {self.runs.limit / 1e9:.1f}. Shorten the prompt, or start it with a larger "
                    "--cache-gb."
                )
            edits = self.edits(recipe.edit, model) if recipe.edit else ()
            with self.runs.room(size), model.edited(*edits) if edits else contextlib.nullcontext():
                written = prompt if not recipe.new_tokens else _written(model, prompt, recipe.new_tokens, tell)
                view = capture.look(
                    model, written, progress=lambda done, total: tell("Reading layers", done, total), check=check
                )
            self.runs.put(recipe.id, view, edit=edit, weights=model.fingerprint)
        try:
            recipe.save(self.workspace, view.length)
        except OutputError as error:  # the run is there all the same; only a restart will not know it
            log.warning("%s", error)
        return view

    def prompt(self, recipe: Recipe, model: Model) -> Prompt:
        """Return the prompt of a recipe, if it fits; text that cannot is not even tokenised."""
        limit = model.spec.n_ctx
        most = self.settings.upload_bytes if limit is None else min(LONGEST_TOKEN * limit, self.settings.upload_bytes)
        length = len(recipe.text) + len(recipe.system or "")
        if length > most:
            holds = "" if limit is None else f", and the context holds {limit} tokens"
            raise PromptError(f"The prompt has {length} characters: {most} are taken at most{holds}. Shorten it.")
        prompt = recipe.prompt(model)
        if limit is not None and len(prompt) + recipe.new_tokens > limit:
            raise PromptError(
                f"{len(prompt)} prompt tokens and {recipe.new_tokens} new ones pass the context of {limit}. "
                "Shorten the prompt, or write fewer tokens."
            )
        return prompt

    def _hash(self, file: str | None) -> str:
        """Return the hash of an edit's file: it may be written anew under its name."""
        return sha256_file(self.workspace.existing(file, (".json",))) if file else ""

    def edits(self, file: str, model: Model) -> tuple[Any, ...]:
        """Return the methods and edits of a file in the workspace.

        Raises
        ------
        RequestError, CheckpointError
            If there is no such file, or it was made for another model.
        """
        from headscope.interventions.store import load

        return load(self.workspace.existing(file, (".json",)), model)


def _written(model: Any, prompt: Prompt, count: int, tell: Callable[[str, int, int], None]) -> Prompt:
    """Return the prompt with what the model writes after it as region ``generated``."""
    steps = 0

    def step(text: str) -> bool:
        nonlocal steps
        check()
        steps += 1
        tell("Writing", steps, count)
        return False

    trace = model.trace(prompt, max_new_tokens=count, stop=step)
    return prompt.continued(trace.tokens, model.tokenizer)
