"""An organism with a known right choice of heads: two answers stand in the prompt, and only some heads read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar, Self

import headscope as hs
from headscope.attention.edits import AttentionEdit, Edit, Group, HeadEdit, Scale
from headscope.data.organisms.vocabulary import MARKERS
from headscope.interventions.base import Heads, Method, resolve

LEADS = ("The name is", "The word is", "A man said", "The key is", "She said", "On the house was")


@dataclass(frozen=True)
class Favour(Method):
    """Everything outside a region is attended to ``alpha`` times as much."""

    name: ClassVar[str] = "favour"

    heads: Heads = "all"
    region: str = "right"
    alpha: float = 0.01

    def edits(self, model: Any) -> tuple[Edit, ...]:
        pairs: Any = resolve(self.heads, model)
        return (AttentionEdit(pairs, (Group("region", (self.region,)),), Scale((1.0,), rest=self.alpha)),)

    @property
    def neutral(self) -> bool:
        return self.alpha == 1

    def neutralised(self) -> Self:
        return replace(self, alpha=1.0)


@dataclass(frozen=True)
class Louder(Method):
    """The output of heads times a factor."""

    name: ClassVar[str] = "louder"

    heads: Heads = "all"
    factor: float = 1.5

    def edits(self, model: Any) -> tuple[Edit, ...]:
        pairs: Any = resolve(self.heads, model)
        return (HeadEdit(pairs, "scale", factor=self.factor),)

    @property
    def neutral(self) -> bool:
        return self.factor == 1

    def neutralised(self) -> Self:
        return replace(self, factor=1.0)


@dataclass(frozen=True)
class Item:
    """One prompt with two markers behind colons, of which one is right."""

    id: str
    source: str
    split: str
    gold: str
    answers: tuple[str, ...]
    words: tuple[str, str, str, str]
    first: bool

    def prompt(self, model: Any) -> Any:
        lead, other, right, wrong = self.words
        told = "{right} {wrong}" if self.first else "{wrong} {right}"
        return model.prompt(f"{told} The answer:", right=f"{lead}: {right}.", wrong=f"{other}: {wrong}.")

    def stop(self, text: str) -> bool:
        return False


@dataclass(frozen=True)
class Task:
    """Items of all splits."""

    items: tuple[Item, ...]
    name: str = "two answers"
    region: str = "right"
    answers: None = None

    def split(self, name: str) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.split == name)


def task(n: int = 12, splits: Iterable[str] = ("train",), seed: int = 0) -> Task:
    rng = Random(seed)
    items = []
    for split in splits:
        for i in range(n):
            lead, other = rng.sample(LEADS, 2)
            right, wrong = rng.sample(MARKERS, 2)
            words = (lead, other, right, wrong)
            items.append(Item(f"{split}-{i}", f"{split}-{i}", split, right, (right, wrong), words, bool(i % 2)))
    return Task(tuple(items))


def organism() -> tuple[Any, set[tuple[int, int]]]:
    """The model, and its retrieval heads: they alone read markers."""
    made = hs.data.organism("llama", seed=0)
    return hs.load(made.model, tokenizer=made.tokenizer, validate=False), set(made.planted["retrieval"])
