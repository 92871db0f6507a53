"""A run as a notebook cell: Python that makes the same view."""

from __future__ import annotations

import keyword
import textwrap
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from headscope.app.runs import Recipe
from headscope.models.template import RESERVED

_TAKEN = {"template", "chat", "system", "max_length", "truncate", "add_special_tokens", "self", *RESERVED}
"""Names that ``model.prompt`` gives a meaning, so that no fill can have them."""
WIDTH = 96


def cell(recipe: Recipe, view: Any = None, *, root: Path | None = None) -> str:
    """Return Python that loads the model, makes the prompt and shows its view.

    Parameters
    ----------
    view
        The run's view, for regions that no template can express: those that overlap, in a chat.
    root
        The workspace, where the edit's file lies.
    """
    lines = ["import headscope as hs", "", f"model = hs.load({recipe.model!r})", *prompt_lines(recipe, view)]
    options = [f"max_new_tokens={recipe.new_tokens}"] if recipe.new_tokens else []
    if recipe.edit:
        file = str((root or Path()) / recipe.edit)
        options.append(f"edits=hs.interventions.load({file!r}, model)")
    lines.append(f"model.view({', '.join(['prompt', *options])})")
    return "\n".join(lines) + "\n"


def prompt_lines(recipe: Recipe, view: Any = None) -> list[str]:
    """Return Python that makes the prompt; ``view`` as for ``cell``."""
    chat = [] if not recipe.chat else ["chat=True"]
    if recipe.chat and recipe.system is not None:
        chat.append(f"system={literal(recipe.system)}")
    regions = sorted(recipe.regions, key=lambda region: region[1:])
    if _fits_template(regions):
        return _call("model.prompt", [_template(recipe.text, regions), *_fills(recipe.text, regions), *chat])
    if not recipe.chat:
        spans: dict[str, list[tuple[int, int]]] = {}
        for name, start, end in regions:
            spans.setdefault(name, []).append((start, end))
        return _call("hs.Prompt.from_text", ["model.tokenizer", literal(recipe.text), repr(spans)])
    made = _call("model.prompt", [literal(recipe.text.replace("{", "{{").replace("}", "}}")), *chat])
    if view is None:
        return made
    names = dict.fromkeys(name for name, _, _ in regions)
    listed = {name: runs for name, runs in view.meta()["regions"].items() if name in names}
    inside = ", ".join(f"{name!r}: [{_positions(runs)}]" for name, runs in listed.items())
    return [*made, f"prompt = prompt.with_regions({{{inside}}})"]


def _fits_template(regions: list[tuple[str, int, int]]) -> bool:
    usable = all(name.isidentifier() and not keyword.iskeyword(name) and name not in _TAKEN for name, _, _ in regions)
    return usable and all(before[2] <= after[1] for before, after in pairwise(regions))


def _template(text: str, regions: list[tuple[str, int, int]]) -> str:
    parts, reached = [], 0
    for name, start, end in regions:
        parts += [_doubled(text[reached:start]), f"{{{name}}}"]
        reached = end
    return literal("".join([*parts, _doubled(text[reached:])]))


def _fills(text: str, regions: list[tuple[str, int, int]]) -> list[str]:
    fills: dict[str, list[str]] = {}
    for name, start, end in regions:
        fills.setdefault(name, []).append(text[start:end])
    return [
        f"{name}={literal(found[0])}" if len(found) == 1 else f"{name}=[{', '.join(map(literal, found))}]"
        for name, found in fills.items()
    ]


def _call(function: str, arguments: Iterable[str]) -> list[str]:
    inner = [textwrap.indent(f"{argument},", "    ") for argument in arguments]
    return [f"prompt = {function}(", *inner, ")"]


def literal(text: str) -> str:
    """Write text as Python, long text as several literals in brackets, one for each line or so."""
    if len(repr(text)) <= WIDTH:
        return repr(text)
    pieces: list[str] = []
    for line in text.splitlines(keepends=True):
        pieces += [line[at : at + WIDTH] for at in range(0, len(line), WIDTH)]
    return "\n".join(["(", *(f"    {piece!r}" for piece in pieces), ")"])


def _doubled(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _positions(runs: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"*range({start}, {end})" if end - start > 1 else str(start) for start, end in runs)
