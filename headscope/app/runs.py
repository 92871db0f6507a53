"""What a page asked to run, as data, and the runs that are kept."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from headscope.errors import HeadscopeError, PromptError, RequestError
from headscope.files import canonical_json, sha256_text, write_text
from headscope.models.prompt import Prompt
from headscope.models.regions import covering

if TYPE_CHECKING:
    from headscope.app.workspace import Workspace
    from headscope.report.view import View

RECIPES = ".app/recipes"


class Gone(HeadscopeError):
    """A run is not in memory any more."""


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on, so that the same view can be made again.

    Parameters
    ----------
    model
        Name of the model.
    text
        The prompt as it was typed.
    chat, system
        Whether to send it through the chat template, and under which system message.
    regions
        (name, start, end) in characters of ``text``; a name may come several times.
    new_tokens
        How many tokens to write after the prompt.
    edit
        File in the workspace that holds an edit to run under, if any.
    """

    model: str
    text: str
    chat: bool = False
    system: str | None = None
    regions: tuple[tuple[str, int, int], ...] = ()
    new_tokens: int = 0
    edit: str | None = None

    @property
    def id(self) -> str:
        """Name of the run: equal recipes have one."""
        return sha256_text(canonical_json(asdict(self)))[:16]

    def prompt(self, model: Any) -> Prompt:
        """Return the prompt with its regions.

        Raises
        ------
        PromptError
            If there is no text, a region holds no token, or the prompt is longer than the model's context.
        """
        if not self.text.strip():
            raise PromptError("The prompt is empty: type or load some text.")
        spans: dict[str, list[tuple[int, int]]] = {}
        for name, start, end in self.regions:
            spans.setdefault(name, []).append((start, end))
        if not self.chat:
            if self.system:
                raise PromptError("A system message needs the chat template: switch it on.")
            return Prompt.from_text(model._need_tokenizer(), self.text, spans, n_ctx=model.spec.n_ctx)
        made: Prompt = model.prompt("{prompt}", prompt=self.text, chat=True, system=self.system)
        # Chat templates trim the message: what is left of it begins where the region does.
        lead = len(self.text) - len(self.text.lstrip())
        at = made.text.find(self.text.strip(), made.offsets[made.positions("prompt")[0]][0])
        moved = {
            name: [(max(start - lead, 0) + at, min(end - lead, len(self.text.strip())) + at) for start, end in pairs]
            for name, pairs in spans.items()
        }
        return made.with_regions(covering(made.text, made.offsets, moved)) if moved else made

    def save(self, workspace: Workspace) -> None:
        """Remember the recipe, so that its view can be made again after a restart."""
        write_text(workspace.path(f"{RECIPES}/{self.id}.json"), json.dumps(asdict(self), indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, workspace: Workspace, run: str) -> Recipe:
        """Return the recipe of a run.

        Raises
        ------
        RequestError
            If there is none of that name.
        """
        if not run.isalnum():
            raise RequestError(f"{run!r} is not the name of a run.")
        path = workspace.path(f"{RECIPES}/{run}.json")
        try:
            return cls.read(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RequestError(
                f"There is no run {run!r} in the workspace {workspace.root}: it was made elsewhere. "
                "Run its prompt again."
            ) from error

    @classmethod
    def read(cls, document: dict[str, Any]) -> Recipe:
        """Return a recipe from JSON values."""
        regions = tuple((str(name), int(start), int(end)) for name, start, end in document.get("regions", ()))
        return cls(**{**document, "regions": regions})


class RunCache:
    """Views of runs by name, at most ``limit`` bytes of them; those used least recently leave first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._views: OrderedDict[str, View] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, run: str) -> View:
        """Return a view.

        Raises
        ------
        Gone
            If it is not kept.
        """
        with self._lock:
            if run not in self._views:
                raise Gone("This run left the memory of the server. Run it again: its prompt is kept.")
            self._views.move_to_end(run)
            return self._views[run]

    def __contains__(self, run: object) -> bool:
        with self._lock:
            return run in self._views

    def put(self, run: str, view: View) -> None:
        """Keep a view, and let others go until all fit."""
        with self._lock:
            self._views[run] = view
            self._views.move_to_end(run)
            while self._held() > self.limit and len(self._views) > 1:
                self._views.popitem(last=False)

    def make_room(self, size: int) -> None:
        """Let views go until ``size`` more bytes fit."""
        with self._lock:
            while self._views and self._held() + size > self.limit:
                self._views.popitem(last=False)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        with self._lock:
            return self._held()

    def _held(self) -> int:
        return sum(view.nbytes for view in self._views.values())
