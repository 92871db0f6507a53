"""JSON with the keys in a stated order, out of a few sentences about a person."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from random import Random
from typing import Any

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
    fresh,
    sizes,
    within,
)

KEYS = ("name", "age", "job", "city", "pet", "hobby")
SLACK = 24
"""Room for white space, code fences and a sentence before the JSON."""


@dataclass(frozen=True)
class JsonItem(TaskItem):
    """Adds the values that are asked for, in the order that is asked for."""

    values: tuple[tuple[str, str | int], ...] = ()

    def stop(self, text: str) -> bool:
        """Whether the answer is over: an object is closed, or a text without one has come to an empty line."""
        start = text.find("{")
        return "\n\n" in text.lstrip() if start < 0 else _end(text, start) is not None

    def checks(self, text: str) -> dict[str, bool]:
        """Say what of the instruction a text follows.

        Returns
        -------
        ``parses``: its first ``{…}`` is JSON, whatever stands around it. ``keys``: it has the keys that were asked
        for, each once, and no other. ``order``: they stand in the order that was asked for. ``values``: each has the
        value of the text; case, white space at the edges, and whether a number is in quotes do not count.
        """
        found = _parsed(text)
        if found is None:
            return dict.fromkeys(("parses", "keys", "order", "values"), False)
        names, wanted = [key for key, _ in found], [key for key, _ in self.values]
        keys = sorted(names) == sorted(wanted)
        given = dict(found)
        values = all(key in given and _same(given[key], value) for key, value in self.values)
        return {"parses": True, "keys": keys, "order": keys and names == wanted, "values": values}

    def verdict(self, text: str) -> Verdict:
        """Judge a model's text: valid if it holds a JSON object, correct if all of ``checks`` are met."""
        checks = self.checks(text)
        return Verdict(checks["parses"], all(checks.values()))


def build(model: Any, n: int, seed: int, *, keys: int = 2, shots: int = 2, chat: bool | None = None) -> Task:
    """Make texts to write as JSON; see ``headscope.data.tasks.make``.

    Parameters
    ----------
    keys
        How many of name, age, job, city, pet and hobby are asked for, 2 to 6.
    shots
        Examples before the text, 0 to 4. They ask for the same keys in orders of their own; that of the last is
        never the one that is asked for, so that who copies it is wrong.
    """
    ask = chats(model, "json", chat, default=False)
    within("keys", keys, 2, len(KEYS))
    within("shots", shots, 0, 4)
    items: list[TaskItem] = []
    seen: set[str] = set()
    for split, count in sizes(n).items():
        rng = Random(f"tasks/json/{seed}/{split}")
        for number, job in enumerate(around(_jobs()[split], count, rng)):
            name = f"json-{seed}-{split}-{number:04d}"
            items.append(fresh(seen, partial(_item, name, split, job, keys, shots, ask, rng)))
    parameters = {"n": n, "seed": seed, "keys": keys, "shots": shots, "chat": ask}
    return finish("json", model, items, "instruction", parameters, slack=SLACK, shorten="Lower shots= or keys=.")


@cache
def _people() -> dict[str, list[str]]:
    loaded: dict[str, list[str]] = resource("people.json")
    return loaded


@cache
def _jobs() -> dict[Split, list[str]]:
    return divide("json", _people()["jobs"])


def _item(name: str, split: Split, job: str, keys: int, shots: int, chat: bool, rng: Random) -> TaskItem:
    text, facts = person(job, rng)
    wanted = rng.sample(KEYS, keys)
    values = tuple((key, facts[key]) for key in wanted)
    parts, fills = [], {"text": text, "instruction": _instruction(wanted)}
    if shots:
        others = rng.sample([other for other in _jobs()[split] if other != job], shots)
        orders = [rng.sample(wanted, keys) for _ in others]
        while orders[-1] == wanted:
            rng.shuffle(orders[-1])
        shown = [_example(other, order, rng) for other, order in zip(others, orders, strict=True)]
        fills["demonstrations"] = "\n\n".join(shown)
        parts.append("{demonstrations}")
    parts.append("{text}\n{instruction}" + ("" if chat else "\nJSON:"))
    return JsonItem(
        id=name,
        source=job,
        split=split,
        gold=_written(dict(values)),
        template="\n\n".join(parts),
        fills=fills,
        chat=chat,
        factors={"keys": keys, "shots": shots},
        values=values,
    )


def _example(job: str, order: list[str], rng: Random) -> str:
    text, facts = person(job, rng)
    return f"{text}\n{_instruction(order)}\nJSON: {_written({key: facts[key] for key in order})}"


def _instruction(keys: list[str]) -> str:
    return f"Write this as JSON with the keys {', '.join(keys[:-1])} and {keys[-1]}, in this order."


def _written(values: Mapping[str, str | int]) -> str:
    return json.dumps(values)


def person(job: str, rng: Random) -> tuple[str, dict[str, str | int]]:
    """Write some sentences about somebody; return them with the facts, by key."""
    people = _people()
    kind = rng.choice(("she", "he"))
    facts: dict[str, str | int] = {
        "name": f"{rng.choice(people[kind])} {rng.choice(people['surnames'])}",
        "age": rng.randint(19, 78),
        "job": job,
        "city": rng.choice(people["cities"]),
        "pet": rng.choice(people["pets"]),
        "hobby": rng.choice(people["hobbies"]),
    }
    openings = ["{name} is a {job} in {city}.", "{name}, a {job}, lives in {city}.", "In {city} lives a {job}, {name}."]
    closings = [
        "{who} is {age}, keeps a {pet} and loves {hobby}.",
        "{who} has a {pet}, is {age} years old and enjoys {hobby}.",
        "{who} spends the weekend on {hobby}, with a {pet} at hand, and is {age}.",
    ]
    return f"{rng.choice(openings)} {rng.choice(closings)}".format(who=capital(kind), **facts), facts


# -- reading ---------------------------------------------------------------------------------------------------------


def _end(text: str, start: int) -> int | None:
    """Return where the object that opens at ``start`` is closed; braces in strings do not count."""
    depth, quoted, escaped = 0, False, False
    for place in range(start, len(text)):
        char = text[place]
        if quoted:
            quoted = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            quoted = True
        elif char in "{}":
            depth += 1 if char == "{" else -1
            if depth == 0:
                return place + 1
    return None


def _parsed(text: str) -> list[tuple[str, Any]] | None:
    """Return the pairs of the first object, in order and with repetitions; None if there is none, or no JSON."""
    start = text.find("{")
    end = _end(text, start) if start >= 0 else None
    if end is None:
        return None
    try:
        found = json.loads(text[start:end], object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None
    return list(found)


class _Pairs(list[tuple[str, Any]]):
    """An object as pairs: other than a dictionary it keeps what comes twice."""


def _same(given: Any, value: str | int) -> bool:
    if isinstance(given, (bool, list, dict)) or given is None:
        return False
    return re.sub(r"\s+", " ", str(given)).strip().casefold() == str(value).casefold()
