"""Tasks: items with a prompt, a right answer and a way to read what a model wrote, in splits that share no source.

Which sources are train, validation and test is fixed, whatever the seed: a method trained on items of one seed can be
measured on test items of another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Any, Literal, TypeAlias, get_args

from headscope.data.dataset import content, needs_tokenizer, positive
from headscope.errors import DataError, PromptError, nearest
from headscope.files import canonical_json, sha256_text

Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SHARES: dict[Split, float] = {"train": 0.4, "validation": 0.2, "test": 0.4}
"""Share of the items, and of the sources, that each split gets."""
LEAST = 8
"""Fewest items of a task: below, a split would have one or none."""
SLACK = 6
"""New tokens that a model may spend beside the longest candidate's own."""


@dataclass(frozen=True)
class Verdict:
    """What a model's text is worth.

    Attributes
    ----------
    valid
        Whether the text is an answer at all, right or wrong; each task says what that means.
    correct
        Whether it is the right answer. A text that is not valid is not correct.
    label
        Which candidate it gives; None if none, and in free-form tasks.
    """

    valid: bool
    correct: bool
    label: str | None = None


@dataclass(frozen=True)
class TaskItem:
    """One question. This class reads answers that name one of the candidates; see ``verdict``.

    Attributes
    ----------
    id, source, split
        Unique name; cluster for the bootstrap; ``"train"``, ``"validation"`` or ``"test"``.
    gold
        The right answer, as a continuation of the prompt.
    template, fills
        The prompt's text, and what goes into its places, which are its regions.
    answers
        Candidates, the right one among them; none if any text may be an answer.
    chat
        Whether the model is asked through its chat template.
    factors
        Properties to break results down by.
    """

    id: str
    source: str
    split: Split
    gold: str
    template: str
    fills: Mapping[str, str | Sequence[str]] = field(hash=False)
    answers: tuple[str, ...] = ()
    chat: bool = False
    factors: Mapping[str, str | int | float] = field(default_factory=dict, hash=False)

    def prompt(self, model: Any) -> Any:
        """Return the prompt, with a region for each fill."""
        return model.prompt(self.template, chat=self.chat, **self.fills)

    def stop(self, text: str) -> bool:
        """Whether the answer is over: its line has ended."""
        return "\n" in text.lstrip()

    def verdict(self, text: str) -> Verdict:
        """Judge a model's text.

        Valid if its first line names exactly one candidate, as whole words, whatever the case, and does not deny it
        (``not positive``). Correct if that is the right one.
        """
        label = named(first_line(text), self.answers)
        return Verdict(label is not None, label == self.gold, label)


@dataclass(frozen=True)
class Task:
    """Items of one kind, and what an evaluation has to know of them.

    Attributes
    ----------
    name
        See ``TASKS``.
    items
        All items, of all splits.
    region
        The region of every prompt that is worth emphasising.
    max_new_tokens
        Most tokens that an answer may take.
    parameters
        What the items were made from.
    answers
        Candidates, in order, if all items share them.
    """

    name: str
    items: tuple[TaskItem, ...]
    region: str
    max_new_tokens: int
    parameters: Mapping[str, Any] = field(hash=False)
    answers: tuple[str, ...] | None = None

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the name and of every item's content, in order."""
        return sha256_text(canonical_json({"name": self.name, "items": [content(item) for item in self.items]}))

    def split(self, name: str) -> tuple[TaskItem, ...]:
        """Return the items of one split, ``"train"``, ``"validation"`` or ``"test"``; no two share a source.

        Raises
        ------
        DataError
            If there is no split of that name.
        """
        if name not in SPLITS:
            raise DataError(f"There is no split {name!r}.{nearest(name, SPLITS)}")
        return tuple(item for item in self.items if item.split == name)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[TaskItem]:
        return iter(self.items)

    def __getitem__(self, index: int) -> TaskItem:
        return self.items[index]

    def __repr__(self) -> str:
        parts = ", ".join(f"{len(self.split(name))} {name}" for name in SPLITS)
        sources = len({item.source for item in self.items})
        return f"Task({self.name!r}: {parts}, {sources} sources, {self.hash[:12]})"


# -- making ----------------------------------------------------------------------------------------------------------


def sizes(n: int) -> dict[Split, int]:
    """Return how many of n items each split gets.

    Raises
    ------
    DataError
        If n is no whole number, or below ``LEAST``.
    """
    if positive("n", n) < LEAST:
        raise DataError(f"n={n} items leave a split with one or none. Ask for at least {LEAST}.")
    train, validation = round(n * SHARES["train"]), round(n * SHARES["validation"])
    return {"train": train, "validation": validation, "test": n - train - validation}


def within(name: str, value: Any, low: int, high: int) -> int:
    """Return an option's value if it is a whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise DataError(f"{name}={value!r}: give a whole number from {low} to {high}.")
    return value


def divide(kind: str, names: Sequence[str]) -> dict[Split, list[str]]:
    """Share names out between the splits: the same way for every seed, so that what is test stays test."""
    order = sorted(names)
    Random(f"tasks/{kind}/splits").shuffle(order)
    first = round(len(order) * SHARES["train"])
    second = first + round(len(order) * SHARES["validation"])
    return {"train": order[:first], "validation": order[first:second], "test": order[second:]}


def around(names: Sequence[Any], count: int, rng: Random) -> list[Any]:
    """Return ``count`` names in random order, each used as often as any other, by at most one."""
    out: list[Any] = []
    while len(out) < count:
        out.extend(rng.sample(list(names), len(names)))
    return out[:count]


def chats(model: Any, name: str, chat: bool | None, default: bool | None = None) -> bool:
    """Whether to ask through the chat template: as told, else by ``default``, else where the tokenizer has one.

    Raises
    ------
    DataError
        If the model has no tokenizer, or no template and one is asked for.
    """
    tokenizer = needs_tokenizer(model, f"task({name!r})")
    has = getattr(tokenizer, "chat_template", None) is not None
    if chat and not has:
        raise DataError(f"chat=True: the tokenizer of {model.name} has no chat template. Leave chat out.")
    wanted = default if chat is None else chat
    return has if wanted is None else wanted


def room_for(model: Any, answers: Iterable[str], slack: int = SLACK) -> int:
    """Return how many new tokens the longest of the answers may take, ``slack`` more than its own."""
    texts = [f" {text}" for text in sorted(set(answers))]
    return max(map(len, model.tokenizer(texts, add_special_tokens=False)["input_ids"])) + slack


def finish(
    name: str,
    model: Any,
    items: Sequence[TaskItem],
    region: str,
    parameters: Mapping[str, Any],
    *,
    answers: tuple[str, ...] | None = None,
    slack: int = SLACK,
    shorten: str = "",
) -> Task:
    """Return the task, after a look at every prompt.

    Parameters
    ----------
    slack
        New tokens beside those of the longest answer.
    shorten
        What the user may do where prompts are too long.

    Raises
    ------
    DataError
        If a prompt and its answer do not fit the model's context, or lack the region.
    """
    longest = room_for(model, (text for item in items for text in (item.gold, *item.answers)), slack)
    room = None if model.spec.n_ctx is None else int(model.spec.n_ctx) - longest + 1
    for item in items:
        try:
            prompt = item.prompt(model)
            prompt.positions(region)
        except PromptError as error:
            raise DataError(f"Item {item.id!r} of the task {name!r} does not fit {model.name}: {error}") from error
        if room is not None and len(prompt) > room:
            raise DataError(
                f"Item {item.id!r} of the task {name!r} has {len(prompt)} tokens, and an answer up to {longest}; the "
                f"context of {model.name} holds {model.spec.n_ctx}. {shorten or 'Take a model with a longer one.'}"
            )
    counted = {f"{split}_sources": len({i.source for i in items if i.split == split}) for split in SPLITS}
    return Task(name, tuple(items), region, longest, {**parameters, **counted}, answers)


def fresh(seen: set[str], make: Callable[[], TaskItem], tries: int = 200) -> TaskItem:
    """Return what ``make`` gives as soon as its prompt is not in ``seen``, and put it there.

    Raises
    ------
    DataError
        If ``tries`` prompts in a row were known.
    """
    for _ in range(tries):
        item = make()
        key = canonical_json([item.template, dict(item.fills)])
        if key not in seen:
            seen.add(key)
            return item
    raise DataError(f"After {len(seen)} prompts there was no new one of this kind. Ask for fewer items: lower n.")


# -- reading ---------------------------------------------------------------------------------------------------------

_DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor|no|cannot be|hardly)|n['’]t(?: be)?)"
    r"(?:\s+(?:at all|a|an|the|really|very|so|quite|entirely|particularly|even))*\s*[\"'“‘(*]*$",
    re.IGNORECASE,
)


def first_line(text: str) -> str:
    """Return the first line of a text that is not empty."""
    return text.strip().split("\n", 1)[0].strip()


def named(text: str, candidates: Sequence[str]) -> str | None:
    """Return the candidate that a text names; None if it names none, several, or denies the one it names.

    Candidates are whole words, whatever their case: ``12`` is not in ``3.12``, nor ``York`` in ``New York`` if that
    is a candidate too. A denial is a word such as ``not`` right before, articles and adverbs aside.
    """
    found: set[str] = set()
    taken: list[tuple[int, int]] = []
    for candidate in sorted(candidates, key=lambda text: (-len(text), text)):
        pattern = rf"(?<![\w-])(?<!\d[.,]){re.escape(candidate)}(?!\w|-\w|[.,]\d)"
        for match in re.finditer(pattern, text, re.IGNORECASE):
            if any(match.start() < end and start < match.end() for start, end in taken):
                continue
            taken.append(match.span())
            if _DENIED.search(text[: match.start()]):
                return None
            found.add(candidate)
    return found.pop() if len(found) == 1 else None
