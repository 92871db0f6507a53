"""Prose without end: sentences from a small grammar, over ten subjects, that do not repeat.

The grammar is ours (``resources/prose.json``). It knows no digits, no proper names, and none of the words that
answers are made of, so that what is hidden in it can be found in one place alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any

from headscope.data.dataset import resource
from headscope.errors import DataError

REMARK = 0.2
"""Share of sentences that are whole sentences of the resource rather than grown from a frame."""


@cache
def _grammar(language: str) -> dict[str, Any]:
    grammars: dict[str, dict[str, Any]] = resource("prose.json")
    return grammars[language]


class Deck:
    """Items in random order, none again before all have come."""

    def __init__(self, rng: Random, items: list[str]) -> None:
        self.rng, self.items = rng, items
        self.rest: list[str] = []

    def draw(self, unlike: str | None = None) -> str:
        """Take the next item that is not ``unlike``."""
        while True:
            if not self.rest:
                self.rest = self.rng.sample(self.items, len(self.items))
            if (drawn := self.rest.pop()) != unlike:
                return drawn


def sentences(rng: Random, language: str = "english") -> Iterator[str]:
    """Yield sentences with the white space that follows them: a space, or an empty line at a paragraph's end.

    A paragraph keeps to one subject. No sentence comes twice. The grammar holds more than a hundred thousand English
    sentences and tens of thousands in the other languages; ``DataError`` when it is exhausted.
    """
    grammar = _grammar(language)
    topics = Deck(rng, sorted(grammar["topics"]))
    frames = Deck(rng, grammar["frames"])
    decks = {
        name: {part: Deck(rng, items) for part, items in topic.items()} for name, topic in grammar["topics"].items()
    }
    seen: set[str] = set()
    while True:
        topic = decks[topics.draw()]
        size = rng.randint(4, 7)
        for number in range(size):
            sentence = _fresh(rng, frames, topic, seen)
            yield sentence + ("\n\n" if number == size - 1 else " ")


def _fresh(rng: Random, frames: Deck, topic: dict[str, Deck], seen: set[str]) -> str:
    for attempt in range(1000):
        # Remarks are few and soon used up; then frames go on.
        remark = attempt < 3 and rng.random() < REMARK
        sentence = topic["remarks"].draw() if remark else _grow(frames, topic)
        if sentence not in seen:
            seen.add(sentence)
            return sentence
    raise DataError(
        f"The generated prose is exhausted after {len(seen)} sentences. Give a folder of your own text, "
        "or ask for shorter contexts."
    )


def _grow(frames: Deck, topic: dict[str, Deck]) -> str:
    agent, act, setting = (topic[part].draw() for part in ("agents", "acts", "settings"))
    frame = frames.draw()
    words = {"agent": agent, "act": act, "setting": setting, "Agent": capital(agent), "Setting": capital(setting)}
    if "{other}" in frame:
        words |= {"other": topic["agents"].draw(unlike=agent), "act2": topic["acts"].draw(unlike=act)}
    return frame.format(**words)


def capital(text: str) -> str:
    """Return ``text`` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def split_sentences(text: str, longest: int = 60) -> list[str]:
    """Split text into sentences with the white space that follows each, so that their join is the text.

    A sentence of more than ``longest`` words, as in lists and tables, is split at white space.
    """
    out: list[str] = []
    for sentence in re.findall(r".+?(?:[.!?…。！？]+[\"'»”’)\]]*\s+|\n\s*\n|$)", text, flags=re.DOTALL):
        words = re.findall(r"\S+\s*|\s+", sentence)
        out.extend("".join(words[at : at + longest]) for at in range(0, len(words), longest))
    return out
