"""What the Steer page computes, kept as files of the workspace so that an address brings it back.

Under ``.app/steer``: ``ID.json`` holds what was found, ``ID.edit.json`` the edit that was in force.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from headscope.app.components import method_words
from headscope.app.components.method_asked import EDITS, Asked, Tell, parts
from headscope.app.runs import Recipe
from headscope.errors import HeadscopeError, RequestError
from headscope.files import write_text
from headscope.interventions.store import save

if TYPE_CHECKING:
    from pathlib import Path

    from headscope.app.desk import Desk
    from headscope.interventions.continuation import Continuation

FOLDER = ".app/steer"
KEPT = 400
"""Results that are remembered; the oldest are forgotten."""
FORMAT = "headscope.steer/1"

_ID = re.compile(r"[0-9a-f]{16}")
_WARNED: ContextVar[list[str] | None] = ContextVar("headscope_warned", default=None)


def compare(desk: Desk, asked: Asked, tell: Tell) -> str:
    """Write on without the method and under it; return the name of the result, which may be there already."""
    name = asked.name(desk, "texts")
    if found(desk, name) is not None:
        return name
    from headscope.commands.steered import described
    from headscope.interventions.continuation import compare_continuations

    began = time.monotonic()
    tell(f"Waiting for {asked.recipe.model}", 0, 1)
    with desk.model(asked.recipe.model) as model, warned() as notes:
        tell("Reading the prompt", 0, 1)
        prompt = desk.prompt(asked.recipe, model)
        methods = parts(desk, asked, model, tell)
        made = compare_continuations(model, prompt, *methods, max_new_tokens=asked.recipe.new_tokens, progress=tell)
        command, why = method_words.command(desk, asked, prompt)
        document = {
            "prompt_tokens": len(prompt),
            "methods": [described(method) for method in methods],
            "base": _text(made.base),
            "steered": _text(made.steered),
            "diverges": made.diverges,
            "kl": made.kl,
            "changed": made.changed,
            "notes": notes,
            "python": method_words.python(desk, asked, prompt, methods, model),
            "cell": method_words.python(desk, asked, prompt, methods, model, cell=True),
            "command": command,
            "no_command": why,
            "seconds": time.monotonic() - began,
        }
        save(desk.workspace.path(f"{FOLDER}/{name}.edit.json"), *methods, model=model)
    asked.recipe.save(desk.workspace)
    keep(desk, name, "texts", asked, document)
    return name


def _text(part: Continuation) -> dict[str, Any]:
    return {
        "text": part.text,
        "tokens": list(part.tokens),
        "base": [float(value) for value in part.base],
        "steered": [float(value) for value in part.steered],
    }


# -- files -----------------------------------------------------------------------------------------------------------


def keep(desk: Desk, name: str, kind: str, asked: Asked, document: dict[str, Any]) -> None:
    """Remember a result, and forget the oldest."""
    whole = {"format": FORMAT, "kind": kind, "asked": asked.document(), "run": asked.recipe.id, **document}
    write_text(desk.workspace.path(f"{FOLDER}/{name}.json"), json.dumps(whole, ensure_ascii=False) + "\n")
    files = sorted(desk.workspace.path(FOLDER).glob("*.json"), key=_age)
    for old in [path for path in files if _ID.fullmatch(path.stem)][KEPT:]:
        old.unlink(missing_ok=True)
        old.with_suffix(".edit.json").unlink(missing_ok=True)


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return -path.stat().st_mtime
    return 0.0


def found(desk: Desk, name: str | None, kind: str | None = None) -> dict[str, Any] | None:
    """Return a result by its name; None if there is none, or it is of another kind."""
    if not name or not _ID.fullmatch(name):
        return None
    try:
        document = json.loads(desk.workspace.path(f"{FOLDER}/{name}.json").read_text(encoding="utf-8"))
        if document["format"] != FORMAT or kind not in (None, document["kind"]):
            return None
        Asked.read(document["asked"])
    except (OSError, ValueError, KeyError, TypeError, HeadscopeError):
        return None
    return dict(document)


def sign(desk: Desk, name: str, signature: str) -> None:
    """Remember how the page's settings were written when a result was asked for; a reloaded page compares them."""
    document = found(desk, name)
    if document is not None and document.get("signature") != signature:
        path = desk.workspace.path(f"{FOLDER}/{name}.json")
        write_text(path, json.dumps({**document, "signature": signature}, ensure_ascii=False) + "\n")


def keep_edit(desk: Desk, name: str, wanted: str, *, replace: bool = False) -> str:
    """Copy the edit of a result to ``edits/WANTED.json`` and return that file.

    Raises
    ------
    RequestError
        If the name is none for a file or is taken, or the result is gone.
    """
    source = desk.workspace.path(f"{FOLDER}/{name}.edit.json") if _ID.fullmatch(name) else None
    if source is None or not source.is_file():
        raise RequestError("This run is not kept any more: run it again, then save its edit.")
    target = desk.workspace.new(EDITS, wanted, ".json")
    if target.exists() and target.read_bytes() != source.read_bytes() and not replace:
        raise RequestError(
            f"There is an edit {wanted.strip()!r} already. Save again to replace it, or change the name."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return f"{EDITS}/{target.name}"


def explored(desk: Desk, name: str, file: str) -> str:
    """Return the address that shows the prompt of a result under an edit file."""
    document = found(desk, name)
    if document is None:
        raise RequestError("This run is not kept any more: run it again.")
    from dataclasses import replace

    recipe = replace(Recipe.read(document["asked"]["recipe"]), edit=file)
    recipe.save(desk.workspace)
    return f"/explore?run={recipe.id}"


def default_name(document: dict[str, Any], name: str) -> str:
    """Return a name for the edit of a result: its method, and what tells it from others."""
    asked = document["asked"]
    short = [f"{key}-{text}" for key, text in asked["fields"].items() if re.fullmatch(r"[\w.]{1,8}", text)][:2]
    return " ".join([asked["method"], *short, name[:4]])


# -- warnings of the engine ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def warned() -> Iterator[list[str]]:
    """Collect what the engine warns of in this thread inside the block, each thing once."""
    _listen()
    notes: list[str] = []
    token = _WARNED.set(notes)
    try:
        yield notes
    finally:
        _WARNED.reset(token)
        notes[:] = list(dict.fromkeys(notes))


def _listen() -> None:
    """Hear all warnings: ``warnings.catch_warnings`` would change them for other threads too."""
    before = warnings.showwarning
    if getattr(before, "headscope", False):
        return

    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        notes = _WARNED.get()
        if notes is not None and category is UserWarning:
            notes.append(str(message))
        else:
            before(message, category, *rest, **more)

    show.headscope = True  # type: ignore[attr-defined]
    warnings.showwarning = show
    # Each time, and not once for each line of code: the next run is to hear of it too.
    warnings.filterwarnings("always", category=UserWarning, module=r"headscope\.")
