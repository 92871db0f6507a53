"""Needles: facts of many subjects, in several wordings, with random answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from headscope.data.dataset import resource
from headscope.data.prose import capital

_SLOT = re.compile(r"\{(\w+?)(\d*)\}")
_SMALL = frozenset(
    {"a", "an", "and", "at", "by", "in", "is", "it", "of", "on", "or", "that", "the", "to", "was", "with"}
)
"""Words too common to give an answer away."""


@dataclass(frozen=True)
class Fact:
    """One fact to be found again.

    Attributes
    ----------
    source
        Which subject; the cluster for the bootstrap.
    needle, question, answer
        A sentence, a question about it, and the words of the sentence that answer the question.
    """

    source: str
    needle: str
    question: str
    answer: str


@cache
def _resource() -> dict[str, Any]:
    loaded: dict[str, Any] = resource("needles.json")
    return loaded


def sources() -> list[str]:
    """Names of all subjects."""
    return [str(source["id"]) for source in _resource()["sources"]]


def fact(source: str, rng: Random) -> Fact:
    """Draw a wording and an answer for one subject."""
    chosen = next(entry for entry in _resource()["sources"] if entry["id"] == source)
    answer = _SLOT.sub(lambda slot: _draw(slot[1], slot[2], rng), chosen["answer"])
    needle = rng.choice(chosen["needles"]).replace("{answer}", answer)
    return Fact(source, capital(needle), chosen["question"], answer)


def _draw(name: str, count: str, rng: Random) -> str:
    pools: dict[str, list[str]] = _resource()["pools"]
    if name == "digits":
        return str(rng.randint(10 ** (int(count) - 1), 10 ** int(count) - 1))
    if name == "letters":
        return "".join(rng.choice("BCDFGHJKLMNPQRSTVWXZ") for _ in range(int(count)))
    if name == "day":
        return str(rng.randint(2, 28))
    if name == "Place":
        return capital("".join(rng.sample(pools["syllable"], 3)))
    drawn = rng.choice(pools[name.lower()])
    return capital(drawn) if name[0].isupper() else drawn


def telling(answer: str) -> frozenset[str]:
    """Words of an answer, in lower case, that would give it away."""
    return frozenset(words(answer)) - _SMALL


def words(text: str) -> list[str]:
    """Words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())
