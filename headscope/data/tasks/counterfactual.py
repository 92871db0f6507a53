"""A fact that the model knows, and a context that says it has changed.

The form is that of PASTA's evaluation (Zhang et al. 2023, arXiv 2311.02262): ``Previously, … Currently, …`` and then
a sentence to complete, with nothing that tells the model which of the two to believe. The facts are ours.
"""

from __future__ import annotations

import re
from functools import cache, partial
from random import Random
from typing import Any, Literal, get_args

from headscope.data.dataset import resource
from headscope.data.prose import capital
from headscope.data.tasks.task import SPLITS, Split, Task, TaskItem, around, chats, divide, finish, fresh, sizes
from headscope.errors import DataError, nearest

Order = Literal["previous", "current", "mixed"]
_TENSES = re.compile(r"\[(\w+)\|(\w+)\]")


def build(model: Any, n: int, seed: int, *, order: Order = "mixed", chat: bool | None = None) -> Task:
    """Make facts that have changed; see ``headscope.data.tasks.make``.

    Parameters
    ----------
    order
        Which statement comes first: ``"previous"``, as published, ``"current"``, or half of the items each.
    """
    # As published: a sentence to complete, no chat.
    ask = chats(model, "counterfactual", chat, default=False)
    if order not in get_args(Order):
        raise DataError(f"There is no order {order!r}.{nearest(str(order), get_args(Order))}")
    orders = ("previous", "current") if order == "mixed" else (order,)
    items: list[TaskItem] = []
    seen: set[str] = set()
    for split, count in sizes(n).items():
        rng = Random(f"tasks/counterfactual/{seed}/{split}")
        first = around(orders, count, rng)
        for number, source in enumerate(around(_sources()[split], count, rng)):
            name = f"counterfactual-{seed}-{split}-{number:04d}"
            items.append(fresh(seen, partial(_item, name, split, source, first[number], ask, rng)))
    parameters = {"n": n, "seed": seed, "order": order, "chat": ask}
    return finish("counterfactual", model, items, "current", parameters)


@cache
def _resource() -> dict[str, Any]:
    loaded: dict[str, Any] = resource("counterfactual.json")
    return loaded


@cache
def _sources() -> dict[Split, list[str]]:
    """Return ``"relation/subject"`` of all facts, by split; each relation is in every split."""
    parts = {name: divide(f"counterfactual/{name}", list(kind["facts"])) for name, kind in _resource().items()}
    return {split: [f"{name}/{s}" for name, part in parts.items() for s in part[split]] for split in SPLITS}


def _item(name: str, split: Split, source: str, first: str, chat: bool, rng: Random) -> TaskItem:
    relation, subject = source.split("/")
    kind = _resource()[relation]
    previous = kind["facts"][subject]
    current = rng.choice(sorted(set(kind["facts"].values()) - {previous}))
    statement = rng.choice(kind["statements"])
    past, present = _TENSES.sub(r"\1", statement), _TENSES.sub(r"\2", statement)
    question = rng.choice(kind["questions"])
    fills = {
        "previous": f"Previously, {past.format(subject=subject, value=previous)}.",
        "current": f"Currently, {present.format(subject=subject, value=current)}.",
        "question": kind["asked"].format(subject=subject) if chat else capital(question.format(subject=subject)),
    }
    told = "{previous} {current}" if first == "previous" else "{current} {previous}"
    template = f"{told}\n\n{{question}} Answer with a few words." if chat else f"{told} {{question}}"
    answers = tuple(rng.sample([current, previous], 2))
    return TaskItem(
        name, source, split, current, template, fills, answers, chat, {"relation": relation, "first": first}
    )
