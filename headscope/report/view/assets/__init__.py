"""The viewer's scripts and styles; a bundle is all of one kind, in order of file name."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal


@cache
def bundle(kind: Literal["js", "css"]) -> str:
    """Return all scripts, or all style sheets, as one text."""
    found = sorted((f for f in files(__name__).iterdir() if f.name.endswith(f".{kind}")), key=lambda f: f.name)
    return "\n".join(file.read_text(encoding="utf-8") for file in found)
