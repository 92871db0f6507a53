"""A small task that an organism can do, with a planted truth: two facts of one form, of which one is asked for.

Retrieval heads copy a marker that stands behind a colon, and cannot tell the two facts apart. Hiding the false one from
them, or turning them to the true one, is what helps; nothing that other heads do can.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import headscope as hs
from headscope.attention.edits import HeadEdit, ResidualEdit
from headscope.data.organisms.vocabulary import MARKERS
from headscope.interventions.base import Method

PLACES = ("house", "river", "city", "man", "woman", "night")


@dataclass(frozen=True)
class Item:
    """One question; the answer is one marker, or a few."""

    id: str
    source: str
    split: str
    place: str
    gold: str
    wrong: str
    first: bool
    answers: tuple[str, ...]
    blank: bool = False

    def prompt(self, model: Any) -> Any:
        """Return the prompt; a blank one holds neither fact, and the organism answers with no marker."""
        if self.blank:
            true, false = "said to be so.", "was said before."
        else:
            true, false = f"said: {self.gold}.", f"said: {self.wrong}."
        places = "{fact} It {other}" if self.first else "{other} It {fact}"
        return model.prompt(f"A {self.place} {places} Answer:", fact=true, other=false)

    def stop(self, text: str) -> bool:
        """Whether the answer is over."""
        return "." in text

    def verdict(self, text: str) -> Any:
        """Judge a text: valid if it begins with a candidate."""
        label = next((answer for answer in self.answers if f"{text.strip()} ".startswith(f"{answer} ")), None)
        return SimpleNamespace(valid=label is not None, correct=label == self.gold, label=label)


def task(n: int = 24, *, blank: int = 0, long: bool = False, shared: bool = True) -> Any:
    """Items with two labels, balanced; every source has two.

    ``blank`` items hold no fact. ``long`` makes answers of several tokens. Without ``shared`` every item has candidates
    of its own.
    """
    items = []
    for i in range(n):
        pair = MARKERS[:2] if shared else MARKERS[i % 5 : i % 5 + 2]
        gold, wrong = pair if i // 2 % 2 else pair[::-1]
        if long:
            gold, wrong = f"{gold} {MARKERS[8]}", f"{wrong} {MARKERS[9]} {MARKERS[10]}"
        items.append(
            Item(
                id=f"q{i}",
                source=f"s{i // 2}",
                split="train" if i < n // 4 // 2 * 2 else "test",
                place=PLACES[i % len(PLACES)],
                gold=gold,
                wrong=wrong,
                first=i % 3 == 0,
                answers=tuple(sorted((gold, wrong))),
                blank=i >= n - blank,
            )
        )
    made = SimpleNamespace(name="quiz", items=tuple(items), region="fact", max_new_tokens=4)
    made.parameters, made.hash = {"n": n}, "0" * 64
    made.answers = tuple(sorted(MARKERS[:2])) if shared and not long else None
    made.split = lambda name: tuple(item for item in items if item.split == name)
    return made


def organism() -> tuple[Any, dict[str, list[tuple[int, int]]]]:
    """An organism and its planted heads."""
    made = hs.data.organism("llama", seed=0)
    return hs.load(made.model, tokenizer=made.tokenizer), made.planted


@dataclass(frozen=True)
class Boost(Method):
    """Scale the output of heads."""

    name: ClassVar[str] = "boost"

    heads: Any = "all"
    factor: float = 2.0

    @property
    def neutral(self) -> bool:
        return self.factor == 1

    def neutralised(self) -> Self:
        return type(self)(self.heads, 1.0)

    def edits(self, model: Any) -> Any:
        heads = tuple(model.spec.heads()) if self.heads == "all" else self.heads
        return (HeadEdit(heads, mode="scale", factor=self.factor),)


@dataclass(frozen=True)
class Lying(Boost):
    """A method whose neutral strength is none."""

    name: ClassVar[str] = "lying"

    def neutralised(self) -> Self:
        return type(self)(self.heads, 1.01)


@dataclass(frozen=True)
class Say(Method):
    """Push the model to say some words, whatever was asked."""

    name: ClassVar[str] = "say"

    words: tuple[str, ...] = ()
    strength: float = 1.0

    @property
    def neutral(self) -> bool:
        return self.strength == 0

    def neutralised(self) -> Self:
        return type(self)(self.words, 0.0)

    def edits(self, model: Any) -> Any:
        ids = [model.tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in self.words]
        rows = model.hf.get_output_embeddings().weight.detach()
        vector = (rows[ids] - rows.mean(0)).sum(0)
        return (ResidualEdit(model.spec.n_layers, self.strength * vector / vector.norm()),)
