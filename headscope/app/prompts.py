"""Prompts as files: what a page loads and saves."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.app.runs import Recipe
from headscope.errors import PromptError, RequestError
from headscope.files import write_text

if TYPE_CHECKING:
    from headscope.app.workspace import Workspace

FOLDER = "prompts"
SUFFIXES = (".txt", ".md", ".json")


def saved(workspace: Workspace) -> list[str]:
    """Return the prompts of the workspace, newest first, as paths inside it."""
    return workspace.files(*SUFFIXES, under=FOLDER)


def save(workspace: Workspace, name: str, recipe: Recipe, *, replace: bool = False) -> str:
    """Write a prompt with its regions and return where it lies in the workspace.

    Raises
    ------
    RequestError
        If the name is none for a file, or is taken and ``replace`` is not set.
    PromptError
        If there is no text.
    """
    if not recipe.text.strip():
        raise PromptError("There is no text to save.")
    path = workspace.new(FOLDER, name, ".json")
    if path.exists() and not replace:
        raise RequestError(f"There is a prompt {name.strip()!r} already. Save again to replace it, or change the name.")
    write_text(path, json.dumps(asdict(recipe), indent=1, ensure_ascii=False) + "\n")
    return f"{FOLDER}/{path.name}"


def open_saved(workspace: Workspace, file: str, limit: int) -> dict[str, Any]:
    """Return the fields of a prompt in the workspace; see ``read``.

    Raises
    ------
    RequestError
        If it is outside the workspace, missing, too large, or no text.
    """
    path = workspace.existing(file, SUFFIXES)
    if path.stat().st_size > limit:
        raise RequestError(_too_large(path.name, path.stat().st_size, limit))
    return read(path.name, path.read_bytes(), limit)


def read(name: str, data: bytes, limit: int) -> dict[str, Any]:
    """Return the fields of a recipe that a file gives: its text, or all that a saved prompt holds.

    Parameters
    ----------
    name
        The file's name, which says of what kind it is.
    limit
        Most bytes.

    Raises
    ------
    RequestError
        If it is too large, of another kind, or no UTF-8 text.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise RequestError(f"{name} is no text that can be opened here: choose one of {', '.join(SUFFIXES)}.")
    if len(data) > limit:
        raise RequestError(_too_large(name, len(data), limit))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{name} is not UTF-8 text (byte {error.start} is none). Save it as UTF-8 in your editor and load it again."
        ) from error
    # Text areas know one kind of line end, and regions count characters.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\x00" in text:
        raise RequestError(f"{name} holds bytes that are no text.")
    fields = _fields(text) if suffix == ".json" else None
    fields = fields or {"text": text}
    if not str(fields["text"]).strip():
        raise RequestError(f"{name} holds no text.")
    return fields


def _fields(text: str) -> dict[str, Any] | None:
    """Fields of a saved prompt; None for any other JSON, which is text like any."""
    try:
        document = json.loads(text)
    except ValueError:
        return None
    if not isinstance(document, dict) or not isinstance(document.get("text"), str):
        return None
    known = ("model", "text", "chat", "system", "regions", "new_tokens", "edit")
    chosen = {key: document[key] for key in known if key in document}
    try:
        recipe = Recipe.read({"model": "", **chosen})
    except (TypeError, ValueError, KeyError):
        return None
    inside = all(0 <= start < end <= len(recipe.text) for _, start, end in recipe.regions)
    made = {**asdict(recipe), "regions": [list(region) for region in recipe.regions] if inside else []}
    return {key: made[key] for key in chosen}


def _too_large(name: str, size: int, limit: int) -> str:
    return f"{name} has {size / 1e6:.1f} MB; a prompt may have {limit / 1e6:.1f}."
