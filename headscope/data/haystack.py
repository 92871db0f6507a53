"""Haystacks: text of a wanted number of tokens, cut between sentences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import Any

from headscope.data.answers import words
from headscope.data.folder import read_folder
from headscope.data.prose import sentences, split_sentences
from headscope.errors import DataError

AHEAD = 24
"""Sentences looked at to fill the last gap."""


class Haystack(ABC):
    """Where the sentences of a haystack come from."""

    name: str

    @abstractmethod
    def stream(self, rng: Random) -> Iterator[str]:
        """Yield sentences, each with the white space that follows it."""


class GeneratedProse(Haystack):
    """Our own prose, see ``headscope.data.prose``."""

    name = "generated prose"

    def stream(self, rng: Random) -> Iterator[str]:
        """Yield fresh sentences."""
        return sentences(rng)


class FolderText(Haystack):
    """The text files of a folder, from a random place on, each sentence at most once."""

    def __init__(self, folder: str | Path) -> None:
        self.name = str(folder)
        self.texts = [split_sentences(document.text) for document in read_folder(folder)]

    def stream(self, rng: Random) -> Iterator[str]:
        """Yield the sentences of all files in turn, beginning somewhere and going round once."""
        first = rng.randrange(len(self.texts))
        start = rng.randrange(len(self.texts[first]))
        order = [self.texts[first][start:], *self.texts[first + 1 :], *self.texts[:first], self.texts[first][:start]]
        for text in order:
            for number, sentence in enumerate(text):
                # Files and the seam of the round trip are kept apart like paragraphs.
                yield sentence.rstrip() + "\n\n" if number == len(text) - 1 else sentence


def fill(
    stack: Haystack, tokenizer: Any, rng: Random, budget: int, banned: frozenset[str]
) -> tuple[list[str], list[int]]:
    """Take sentences of together at most ``budget`` tokens, as near to it as the sentences allow.

    Sentences that hold a word of ``banned`` are left out.

    Returns
    -------
    sentences, sizes
        The sentences with the white space that follows, and how many tokens each has.

    Raises
    ------
    DataError
        If the text ends before.
    """
    stream = (sentence for sentence in stack.stream(rng) if sentence.strip() and banned.isdisjoint(words(sentence)))
    taken: list[str] = []
    sizes: list[int] = []
    total = 0
    for sentence, size in _sized(stream, tokenizer):
        if total + size > budget:
            best = _closest(chain([(sentence, size)], islice(_sized(stream, tokenizer), AHEAD)), budget - total)
            if best is not None:
                taken.append(best[0])
                sizes.append(best[1])
            return taken, sizes
        taken.append(sentence)
        sizes.append(size)
        total += size
    raise DataError(
        f"The text of {stack.name} ends after {total} of the {budget} tokens that the haystack needs. "
        "Give more text, or ask for shorter contexts."
    )


def _sized(stream: Iterator[str], tokenizer: Any, batch: int = 64) -> Iterator[tuple[str, int]]:
    """Pair sentences with their number of tokens, a batch at a time because tokenizers like that."""
    while some := list(islice(stream, batch)):
        # White space stands before words in most vocabularies, so that is where its tokens are counted.
        found = tokenizer([f" {sentence.rstrip()}" for sentence in some], add_special_tokens=False)["input_ids"]
        yield from zip(some, map(len, found), strict=True)


def _closest(candidates: Iterator[tuple[str, int]], gap: int) -> tuple[str, int] | None:
    fitting = [found for found in candidates if found[1] <= gap]
    return max(fitting, key=lambda found: found[1], default=None)


def split_at(sizes: Sequence[int], depth: float) -> int:
    """How many sentences come before the needle, so that their share of tokens is nearest to ``depth``."""
    total = sum(sizes)
    before, best, nearest = 0, 0, depth * total
    for number, size in enumerate(sizes, start=1):
        before += size
        if abs(before - depth * total) < nearest:
            best, nearest = number, abs(before - depth * total)
    return best
