"""Facts about things, each among facts of the same form about other things."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from headscope.data.dataset import resource
from headscope.data.prose import capital
from headscope.data.tasks.task import SPLITS, Split, divide

MOST = 6
"""Most distractors: there are seven days."""


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

    def parts(self) -> list[tuple[str, str]]:
        """Return what a context holds, with the names of the regions."""
        return [*(("distractors", other) for other in self.others), ("fact", self.fact)]


@cache
def _resource() -> dict[str, Any]:
    loaded: dict[str, Any] = resource("attributes.json")
    return loaded


@cache
def sources() -> dict[Split, list[str]]:
    """Return the names of all facts, by split; no two splits share a thing."""
    names = _resource()["attributes"]
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
