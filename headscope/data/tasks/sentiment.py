"""Sentiment of short reviews, few-shot.

A review is about one thing, its source. The words that carry the sentiment are shared out between the splits like the
things are: no review of the test items has a telling word that a review of the training items has.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

from headscope.data.dataset import resource
from headscope.data.prose import capital
from headscope.data.tasks.few_shot import Classification, Example
from headscope.data.tasks.task import SPLITS, Split, Task, divide

LABELS = ("positive", "negative")
FORMS = {"plain": 0.4, "remark": 0.2, "concession": 0.25, "denial": 0.15}
"""How a review says it, and how often: outright, with a remark, against an objection, by denying the opposite."""


def build(model: Any, n: int, seed: int, *, shots: int = 4, chat: bool | None = None) -> Task:
    """Make reviews to call positive or negative; see ``headscope.data.tasks.make``."""
    words = _words()
    return Classification(
        "sentiment",
        LABELS,
        ("Review", "Sentiment"),
        "Is the review positive or negative? Answer with one word.",
        {split: dict.fromkeys(LABELS, words[split]["things"]) for split in SPLITS},
        lambda split, source, label, rng: review(words[split], source, label, rng),
    ).task(model, n, seed, shots, chat)


@cache
def _words() -> dict[Split, dict[str, list[str]]]:
    """Things, and words of praise and blame, by split."""
    loaded = resource("sentiment.json")
    pools = {"things": [thing for kind in loaded["kinds"] for thing in kind["things"]]}
    pools |= {f"{label} {part}": loaded[label][part] for label in LABELS for part in ("words", "remarks")}
    divided = {name: divide(f"sentiment/{name}", pool) for name, pool in pools.items()}
    return {split: {name: parts[split] for name, parts in divided.items()} for split in SPLITS}


@cache
def _aspects() -> dict[str, list[str]]:
    """Return what can be said about each thing."""
    return {thing: kind["aspects"] for kind in resource("sentiment.json")["kinds"] for thing in kind["things"]}


def review(words: dict[str, list[str]], thing: str, label: str, rng: Random) -> Example:
    """Write one review of a thing, in the words of one split."""
    form = rng.choices(list(FORMS), list(FORMS.values()))[0]
    word = rng.choice(words[f"{label} words"])
    against = rng.choice(words[f"{'negative' if label == 'positive' else 'positive'} words"])
    remark = rng.choice(words[f"{label} remarks"])
    aspect, other = rng.sample(_aspects()[thing], 2)
    shapes = {
        "plain": [
            f"{aspect} of {thing} was {word}.",
            f"I went for {thing}, and I must say that {aspect} was {word}.",
            f"as for {thing}, {aspect} was {word}, and so was {other}.",
            f"we all thought that {thing} was {word}.",
        ],
        "remark": [f"{aspect} of {thing} was as I remembered it. {remark}", f"last week we tried {thing}. {remark}"],
        "concession": [
            f"although {aspect} was {against}, {thing} was {word} on the whole.",
            f"{aspect} of {thing} was {against}, but {other} was {word}, and that is what counts.",
        ],
        "denial": [
            f"{aspect} of {thing} was anything but {against}.",
            f"nobody could call {thing} {against}.",
        ],
    }
    used = {"plain": [word], "remark": [remark], "concession": [word, against], "denial": [against]}[form]
    return Example(capital(rng.choice(shapes[form])), label, thing, form, frozenset(used))
