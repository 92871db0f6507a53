"""Pronoun change: she and he become they, and everything else stays."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from random import Random
from typing import Any

from headscope.data.answers import words
from headscope.data.dataset import resource
from headscope.data.prose import capital
from headscope.data.tasks.task import (
    Split,
    Task,
    TaskItem,
    Verdict,
    around,
    chats,
    divide,
    finish,
    first_line,
    fresh,
    sizes,
    within,
)

FORMS = {
    "she": {"s": "she", "o": "her", "p": "her", "r": "herself"},
    "he": {"s": "he", "o": "him", "p": "his", "r": "himself"},
    "they": {"s": "they", "o": "them", "p": "their", "r": "themselves"},
}
GENDERED = frozenset({"she", "her", "hers", "herself", "he", "him", "his", "himself"})
NEUTRAL = frozenset({"they", "them", "their", "theirs", "themselves", "themself"})
KEPT = 0.8
"""Share of the other words that a rewriting keeps: verbs may change, little else may."""
INSTRUCTION = (
    "Rewrite the sentences with they in place of {s}.",
    "Repeat the text, but write they, them and their instead of {s}, {o} and {p}.",
    "Replace {s} and {p} by they and their in the sentences.",
)


@dataclass(frozen=True)
class PronounItem(TaskItem):
    """Adds the text that is to be rewritten."""

    text: str = ""

    def verdict(self, text: str) -> Verdict:
        """Judge a model's text by its first line.

        Valid if it is a version of the text: it has a pronoun of either kind, and four fifths of the text's other
        words, verbs of which the form may change left out. Correct if it is valid, has no *she*, *he* or form of
        them, and has at least as many forms of *they* as the text had pronouns. That verbs agree is not asked for:
        *they is* passes, as in PASTA's evaluation.
        """
        line = words(first_line(text))
        wanted = Counter(word for word in words(self.text) if word not in GENDERED) & Counter(words(self.gold))
        kept = sum((wanted & Counter(line)).values()) / max(1, sum(wanted.values()))
        left, changed = (sum(word in kind for word in line) for kind in (GENDERED, NEUTRAL))
        valid = kept >= KEPT and left + changed > 0
        asked = sum(word in GENDERED for word in words(self.text))
        return Verdict(valid, valid and not left and changed >= asked)


def build(model: Any, n: int, seed: int, *, deeds: int = 1, shots: int = 4, chat: bool | None = None) -> Task:
    """Make texts whose pronouns are to be changed; see ``headscope.data.tasks.make``.

    Parameters
    ----------
    deeds
        Sentences with pronouns in each text, 1 to 4.
    shots
        Examples before the text, 0 to 4.
    """
    ask = chats(model, "pronouns", chat, default=False)
    within("deeds", deeds, 1, 4)
    within("shots", shots, 0, 4)
    items: list[TaskItem] = []
    seen: set[str] = set()
    for split, count in sizes(n).items():
        rng = Random(f"tasks/pronouns/{seed}/{split}")
        genders = around(("she", "he"), count, rng)
        for number, deed in enumerate(around(_deeds()[split], count, rng)):
            name = f"pronouns-{seed}-{split}-{number:04d}"
            items.append(fresh(seen, partial(_item, name, split, deed, genders[number], deeds, shots, ask, rng)))
    parameters = {"n": n, "seed": seed, "deeds": deeds, "shots": shots, "chat": ask}
    return finish("pronouns", model, items, "instruction", parameters, shorten="Lower shots= or deeds=.")


@cache
def _deeds() -> dict[Split, list[str]]:
    return divide("pronouns", resource("people.json")["deeds"])


def _item(name: str, split: Split, deed: str, gender: str, deeds: int, shots: int, chat: bool, rng: Random) -> TaskItem:
    told = rng.choice(INSTRUCTION).format(**FORMS[gender])
    others = rng.sample([other for other in _deeds()[split] if other != deed], deeds * (1 + shots) - 1)
    own = [deed, *others[: deeds - 1]]
    rng.shuffle(own)
    text, gold = _texts(own, gender)
    fills, parts = {"instruction": told, "text": text}, ["{instruction}"]
    if shots:
        starts = range(deeds - 1, len(others), deeds)
        shown = [_texts(others[start : start + deeds], gender) for start in starts]
        fills["demonstrations"] = "\n\n".join(f"Text: {before}\nRewritten: {after}" for before, after in shown)
        parts.append("{demonstrations}")
    parts.append("Text: {text}" + ("" if chat else "\nRewritten:"))
    factors: dict[str, str | int | float] = {"pronoun": gender, "deeds": deeds, "shots": shots}
    return PronounItem(name, deed, split, gold, "\n\n".join(parts), fills, (), chat, factors, text=text)


def _texts(deeds: Sequence[str], gender: str) -> tuple[str, str]:
    """Return sentences about her or him, and their rewriting."""
    before, after = (" ".join(_spoken(deed, kind) for deed in deeds) for kind in (gender, "they"))
    return before, after


def _spoken(deed: str, kind: str) -> str:
    """Return a sentence with the pronouns of one kind, and verbs that go with them."""
    verbs = re.sub(r"\[(.+?)\|(.+?)\]", r"\2" if kind == "they" else r"\1", deed)
    forms = FORMS[kind]
    return verbs.format(**forms, S=capital(forms["s"]), P=capital(forms["p"]))
