"""Contexts of a wanted length: prose, and what is hidden in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any, TypeAlias

from headscope.data.answers import telling
from headscope.data.dataset import positive
from headscope.data.haystack import GeneratedProse, fill
from headscope.data.tasks.task import TaskItem
from headscope.errors import DataError, PromptError

LENGTH = 200
"""Tokens of a prompt, where that is enough for all that must be in it and as much prose."""

Parts: TypeAlias = Sequence[tuple[str, str]]
"""Region and text of what a context holds beside prose."""
Frame: TypeAlias = Callable[[str, Mapping[str, Sequence[str]], Mapping[str, str | int | float]], TaskItem]
"""Makes an item of its context: template, fills, and factors."""


def length_of(model: Any, length: int | None, frames: Sequence[TaskItem], room: int) -> int:
    """Check the length of the prompts, or choose it.

    Parameters
    ----------
    frames
        Items without prose.
    room
        Tokens that the longest answer needs.

    Raises
    ------
    DataError
        If the length leaves no room for prose, or with an answer does not fit the context.
    """
    try:
        bare = max(len(frame.prompt(model)) for frame in frames)
    except PromptError as error:
        raise DataError(
            f"Instruction, facts and question do not fit {model.name}, even without prose: {error}"
        ) from error
    least = bare + bare // 4
    most = None if model.spec.n_ctx is None else int(model.spec.n_ctx) - room + 1
    if most is not None and most < least:
        raise DataError(f"The context of {model.name} leaves {max(0, most)} tokens for a prompt; it takes {least}.")
    if length is None:
        wanted = max(LENGTH, 2 * bare)
        return wanted if most is None else min(wanted, most)
    if positive("length", length) < least:
        raise DataError(f"length={length} is too short: with some prose the prompts take {least} tokens.")
    if most is not None and length > most:
        raise DataError(
            f"length={length} leaves no room for an answer in the context of {model.name}; at most {most} does."
        )
    return length


def bare(parts: Parts, frame: Frame) -> TaskItem:
    """Return an item without prose."""
    return frame(*_context([], parts, Random(0)))


def hide(model: Any, parts: Parts, values: Iterable[str], length: int, seed: str, frame: Frame) -> TaskItem:
    """Return an item whose context is prose, with the parts at random places.

    Parameters
    ----------
    parts
        Region and text of what is hidden; the prose is the region ``"haystack"``.
    values
        Answers: the prose has none of their words.
    length
        Tokens of the prompt; it has as many, or as few less as the sentences allow.
    """
    banned = frozenset().union(*(telling(value) for value in values))
    budget = length - len(bare(parts, frame).prompt(model))
    pieces, sizes = fill(GeneratedProse(), model.tokenizer, Random(seed), budget, banned)
    while pieces:
        item = frame(*_context([piece.strip() for piece in pieces], parts, Random(f"{seed}/places")))
        over = len(item.prompt(model)) - length
        if over <= 0:
            return item
        # Tokens of the parts do not add up exactly to those of the whole: leave out the sentence that fits best.
        least = min((i for i in range(len(sizes)) if sizes[i] >= over), key=sizes.__getitem__, default=0)
        pieces.pop(least)
        sizes.pop(least)
    raise DataError(f"No sentence of prose fits into length={length} tokens. Raise length=.")


def _context(
    sentences: Sequence[str], hidden: Parts, rng: Random
) -> tuple[str, dict[str, list[str]], dict[str, str | int | float]]:
    """Put parts between sentences; return template, fills and the depth of a fact among them, from 0 to 1."""
    parts = [("haystack", sentence) for sentence in sentences]
    for name, text in hidden:
        parts.insert(rng.randint(0, len(parts)), (name, text))
    fills: dict[str, list[str]] = {}
    for name, text in parts:
        fills.setdefault(name, []).append(text)
    names = [name for name, _ in parts]
    depth: dict[str, str | int | float] = {}
    if "fact" in names:
        depth["depth"] = round(names.index("fact") / max(1, len(parts) - 1), 2)
    return " ".join(f"{{{name}}}" for name in names), fills, depth
