"""What a page asked to run, as data, and the runs that are kept."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from headscope.app.jobs import check
from headscope.errors import HeadscopeError, PromptError, RequestError
from headscope.files import canonical_json, sha256_text, write_text
from headscope.models.prompt import Prompt
from headscope.models.regions import covering

if TYPE_CHECKING:
    from pathlib import Path

    from headscope.app.workspace import Workspace
    from headscope.report.view import View

RECIPES = ".app/recipes"
RECIPES_KEPT = 500
"""Recipes that are remembered; the oldest are forgotten."""
MOST_REGIONS, LONGEST_NAME = 32, 40
"""Every region costs a number per head and token."""

_ID = re.compile(r"[0-9a-f]{16}")
_KINDS: dict[str, Any] = {
    "model": str,
    "text": str,
    "chat": bool,
    "system": (str, type(None)),
    "new_tokens": int,
    "edit": (str, type(None)),
}


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
            if not name.strip() or len(name) > LONGEST_NAME:
                raise PromptError(f"A region cannot be called {name!r:.60}: use 1 to {LONGEST_NAME} characters.")
            spans.setdefault(name, []).append((start, end))
        if len(spans) > MOST_REGIONS:
            raise PromptError(f"{len(spans)} regions are marked: {MOST_REGIONS} are taken at most. Join some.")
        if not self.chat:
            if self.system:
                raise PromptError("A system message needs the chat template: switch it on.")
            return Prompt.from_text(model._need_tokenizer(), self.text, spans, n_ctx=model.spec.n_ctx)
        made: Prompt = model.prompt("{prompt}", prompt=self.text, chat=True, system=self.system)
        # Chat templates trim the message: what is left of it begins where the region does.
        lead = len(self.text) - len(self.text.lstrip())
        at = made.text.find(self.text.strip(), made.offsets[made.positions("prompt")[0]][0])
        if at < 0 and spans:
            raise PromptError("The chat template of this model changes the text: mark regions without the template.")
        moved = {
            name: [(max(start - lead, 0) + at, min(end - lead, len(self.text.strip())) + at) for start, end in pairs]
            for name, pairs in spans.items()
        }
        return made.with_regions(covering(made.text, made.offsets, moved)) if moved else made

    def save(self, workspace: Workspace, length: int | None = None) -> None:
        """Remember the recipe, so that its view can be made again after a restart.

        ``length`` is what came of it; what is known of that stays where none is given.
        """
        path = workspace.path(f"{RECIPES}/{self.id}.json")
        if length is None:
            with contextlib.suppress(RequestError):
                length = self._saved(workspace, self.id)[1]
        write_text(path, json.dumps({**asdict(self), "length": length}, indent=1, ensure_ascii=False))
        for old in recipe_files(workspace)[RECIPES_KEPT:]:
            old.unlink(missing_ok=True)

    @classmethod
    def load(cls, workspace: Workspace, run: str) -> Recipe:
        """Return the recipe of a run.

        Raises
        ------
        RequestError
            If there is none of that name.
        """
        return cls._saved(workspace, run)[0]

    @classmethod
    def _saved(cls, workspace: Workspace, run: str) -> tuple[Recipe, int | None]:
        path = _file(workspace, run)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            length = document.pop("length", None)
            return cls.read(document), length if isinstance(length, int) else None
        except (OSError, ValueError, AttributeError, TypeError, RequestError) as error:
            raise RequestError(
                f"There is no run {run!r} in the workspace {workspace.root}: it was made elsewhere, or forgotten. "
                "Run its prompt again."
            ) from error

    @classmethod
    def read(cls, document: Any) -> Recipe:
        """Return a recipe from JSON values.

        Raises
        ------
        RequestError
            If they are of the wrong kind.
        """
        try:
            regions = tuple((str(name), int(start), int(end)) for name, start, end in document.get("regions") or ())
            found = cls(**{**document, "regions": regions})
        except (TypeError, ValueError, AttributeError) as error:
            raise RequestError(f"This is no recipe of a run: {error}.") from error
        for name, kind in _KINDS.items():
            if not isinstance(getattr(found, name), kind):
                raise RequestError(f"This is no recipe of a run: its {name} is {getattr(found, name)!r:.40}.")
        if found.new_tokens < 0:
            raise RequestError(f"{found.new_tokens} new tokens cannot be written: give 0 or more.")
        return found


@dataclass(frozen=True)
class Recent:
    """A run that was made: its recipe, its length in tokens where that is known, and when (seconds since 1970)."""

    recipe: Recipe
    length: int | None
    when: float


def recent(workspace: Workspace, count: int) -> list[Recent]:
    """Return the runs that were made last, the last one first; damaged files are passed over."""
    found: list[Recent] = []
    for path in recipe_files(workspace):
        if len(found) == count:
            break
        with contextlib.suppress(OSError, RequestError):
            when = path.stat().st_mtime
            found.append(Recent(*Recipe._saved(workspace, path.stem), when))
    return found


def forget(workspace: Workspace, run: str) -> None:
    """Forget the recipe of a run; one that is not there is no error."""
    _file(workspace, run).unlink(missing_ok=True)


def recipe_files(workspace: Workspace) -> list[Path]:
    """Return the files of all recipes, newest first."""
    found = []
    for path in workspace.path(RECIPES).glob("*.json"):
        with contextlib.suppress(OSError):  # another thread may forget it meanwhile
            found.append((-path.stat().st_mtime, path.name, path))
    return [path for _, _, path in sorted(found)]


def _file(workspace: Workspace, run: str) -> Path:
    if not _ID.fullmatch(run):
        raise RequestError(f"{run!r:.40} is not the name of a run.")
    return workspace.path(f"{RECIPES}/{run}.json")


@dataclass(frozen=True)
class _Kept:
    view: View
    edit: str
    weights: str
    tag: str


class RunCache:
    """Views of runs by name, at most ``limit`` bytes of them; those used least recently leave first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Condition()
        self._promised = 0

    def get(self, run: str) -> View:
        """Return a view.

        Raises
        ------
        Gone
            If it is not kept.
        """
        return self._find(run).view

    def tag(self, run: str) -> str:
        """Return a word that changes whenever a run is made anew."""
        return self._find(run).tag

    def weights(self, run: str) -> str:
        """Return the fingerprint of the model that made a run."""
        return self._find(run).weights

    def find(self, run: str, edit: str = "") -> View | None:
        """Return a view that was made under the edit with this hash, if it is kept."""
        with contextlib.suppress(Gone):
            found = self._find(run)
            return found.view if found.edit == edit else None
        return None

    def _find(self, run: str) -> _Kept:
        with self._lock:
            if run not in self._kept:
                raise Gone("This run left the memory of the server. Run it again: its prompt is kept.")
            self._kept.move_to_end(run)
            return self._kept[run]

    def __contains__(self, run: object) -> bool:
        with self._lock:
            return run in self._kept

    def put(self, run: str, view: View, *, edit: str = "", weights: str = "") -> None:
        """Keep a view, and let others go until all fit."""
        with self._lock:
            self._kept[run] = _Kept(view, edit, weights, secrets.token_hex(8))
            self._kept.move_to_end(run)
            while self._held() > self.limit and len(self._kept) > 1:
                self._kept.popitem(last=False)

    @contextlib.contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Let views go until ``size`` more bytes fit, and keep that room inside the block; waits for other blocks."""
        with self._lock:
            while self._promised and self._promised + size > self.limit:
                self._lock.wait(0.1)
                check()
            self._promised += size
            while self._kept and self._held() + self._promised > self.limit:
                self._kept.popitem(last=False)
        try:
            yield
        finally:
            with self._lock:
                self._promised -= size
                self._lock.notify_all()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        with self._lock:
            return self._held()

    def _held(self) -> int:
        return sum(kept.view.nbytes for kept in self._kept.values())
