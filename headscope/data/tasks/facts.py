"""Facts about things, each among facts of the same form about other things, hidden in prose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from headscope.data.answers import telling
from headscope.data.dataset import positive, resource
from headscope.data.haystack import GeneratedProse, fill
from headscope.data.prose import capital
from headscope.data.tasks.task import SPLITS, Split, TaskItem, divide
from headscope.errors import DataError, PromptError

LENGTH = 200
"""Tokens of a prompt, where that is enough for the facts and as much prose."""
MOST = 6
"""Most distractors: there are seven days."""

Frame = Callable[[str, Mapping[str, Sequence[str]], Mapping[str, str | int | float]], TaskItem]
"""Makes an item of its context: template, fills, and factors."""


@dataclass(frozen=True)
class Fact:
    """What is asked.

    Attributes
    ----------
    source
        ``"attribute/thing"``.
    fact, question, value
        The sentence, a question about it, and its answer.
    stem
        The start of a sentence that the value completes.
    others
        Facts of the same form about other things, with other values.
    values
        All values, the right one first.
    """

    source: str
    fact: str
    question: str
    stem: str
    value: str
    others: tuple[str, ...]
    values: tuple[str, ...]


@cache
def _resource() -> dict[str, Any]:
    loaded: dict[str, Any] = resource("attributes.json")
    return loaded


@cache
def sources(plain: bool = False) -> dict[Split, list[str]]:
    """Return the names of all facts, by split; no two splits share a thing.

    Parameters
    ----------
    plain
        Leave out facts whose values are numbers or, as people of all kinds in the prose, are easily mistaken.
    """
    names = [
        name
        for name, kind in _resource()["attributes"].items()
        if not plain or name not in ("number", "price", "buyer")
    ]
    return {split: [f"{name}/{thing}" for thing in _things()[split] for name in names] for split in SPLITS}


@cache
def _things() -> dict[Split, list[str]]:
    return divide("facts", _resource()["things"])


def draw(split: Split, source: str, distractors: int, rng: Random) -> Fact:
    """Draw the values of a fact and of its distractors."""
    name, thing = source.split("/")
    kind = _resource()["attributes"][name]
    others = rng.sample([other for other in _things()[split] if other != thing], distractors)
    values = _values(kind["values"], 1 + distractors, rng)
    facts = [
        rng.choice(kind["facts"]).format(thing=about, Thing=capital(about), value=value)
        for about, value in zip([thing, *others], values, strict=True)
    ]
    question, stem = (kind[part].format(thing=thing, Thing=capital(thing)) for part in ("question", "stem"))
    return Fact(source, facts[0], question, stem, values[0], tuple(facts[1:]), tuple(values))


def _values(pool: str | list[str], count: int, rng: Random) -> list[str]:
    if isinstance(pool, list):
        return rng.sample(pool, count)
    digits = int(pool.removeprefix("digits"))
    return [str(value) for value in rng.sample(range(10 ** (digits - 1), 10**digits), count)]


def length_of(model: Any, length: int | None, frames: Sequence[TaskItem], room: int) -> int:
    """Check the length of the prompts, or choose it.

    Parameters
    ----------
    frames
        Items whose context is the facts alone.
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
        raise DataError(f"Facts and a question do not fit {model.name}, even without prose: {error}") from error
    least = bare + bare // 4
    most = None if model.spec.n_ctx is None else int(model.spec.n_ctx) - room + 1
    if most is not None and most < least:
        raise DataError(f"The context of {model.name} leaves {max(0, most)} tokens for a prompt; it takes {least}.")
    if length is None:
        wanted = max(LENGTH, 2 * bare)
        return wanted if most is None else min(wanted, most)
    if positive("length", length) < least:
        raise DataError(f"length={length} is too short: facts, question and some prose take {least} tokens.")
    if most is not None and length > most:
        raise DataError(
            f"length={length} leaves no room for an answer in the context of {model.name}; at most {most} does."
        )
    return length


def bare(found: Fact, frame: Frame) -> TaskItem:
    """Return an item whose context is the facts alone."""
    return frame(*_context([], found, Random(0)))


def hide(model: Any, found: Fact, length: int, seed: str, frame: Frame) -> TaskItem:
    """Return an item whose context is prose with the facts at random places, ``length`` tokens long or a little less.

    The context has regions ``"fact"``, ``"distractors"`` and ``"haystack"``.
    """
    banned = frozenset().union(*(telling(value) for value in found.values))
    budget = length - len(bare(found, frame).prompt(model))
    pieces, sizes = fill(GeneratedProse(), model.tokenizer, Random(seed), budget, banned)
    while pieces:
        item = frame(*_context([piece.strip() for piece in pieces], found, Random(f"{seed}/places")))
        over = len(item.prompt(model)) - length
        if over <= 0:
            return item
        # Tokens of the parts do not add up exactly to those of the whole: leave out the sentence that fits best.
        least = min((i for i in range(len(sizes)) if sizes[i] >= over), key=sizes.__getitem__, default=0)
        pieces.pop(least)
        sizes.pop(least)
    raise DataError(f"No sentence of prose fits beside the facts into length={length} tokens. Raise length=.")


def _context(
    sentences: Sequence[str], found: Fact, rng: Random
) -> tuple[str, dict[str, list[str]], dict[str, str | int | float]]:
    """Put the facts between sentences; return template, fills and the fact's depth, from 0 to 1."""
    parts = [("haystack", sentence) for sentence in sentences]
    for name, text in [("distractors", other) for other in found.others] + [("fact", found.fact)]:
        parts.insert(rng.randint(0, len(parts)), (name, text))
    fills: dict[str, list[str]] = {}
    for name, text in parts:
        fills.setdefault(name, []).append(text)
    depth = [name for name, _ in parts].index("fact") / max(1, len(parts) - 1)
    return " ".join(f"{{{name}}}" for name, _ in parts), fills, {"depth": round(depth, 2)}
