"""A fact in a short haystack, among facts of the same form about other things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

from headscope.data.tasks import facts, hiding
from headscope.data.tasks.facts import Fact
from headscope.data.tasks.task import Split, Task, TaskItem, around, chats, finish, room_for, sizes, within

CHAT = (
    "Read the text and answer the question after it.\n\n{context}\n\nQuestion: {{question}}\nAnswer with a few words."
)
PLAIN = "{context}\n\nQuestion: {{question}}\nAnswer: {{stem}}"


def build(
    model: Any, n: int, seed: int, *, length: int | None = None, distractors: int = 3, chat: bool | None = None
) -> Task:
    """Make questions about facts that are hidden in prose; see ``headscope.data.tasks.make``.

    Parameters
    ----------
    length
        Tokens of each prompt; by default 200, or twice what facts and question take.
    distractors
        Facts of the same form in the context, 1 to 6; each brings a wrong candidate.
    """
    # A value that completes a sentence is its own answer; in a chat it comes in a sentence that nobody can foresee.
    ask = chats(model, "needles", chat, default=False)
    within("distractors", distractors, 1, facts.MOST)
    drawn: list[tuple[str, Fact, hiding.Frame]] = []
    for split, count in sizes(n).items():
        rng = Random(f"tasks/needles/{seed}/{split}")
        for number, source in enumerate(around(facts.sources()[split], count, rng)):
            found = facts.draw(split, source, distractors, rng)
            name = f"needles-{seed}-{split}-{number:04d}"
            candidates = tuple(rng.sample(found.values, len(found.values)))
            drawn.append((name, found, partial(_item, name, split, found, candidates, ask)))
    room = room_for(model, (value for _, found, _ in drawn for value in found.values))
    fitted = hiding.length_of(model, length, [hiding.bare(found.parts(), frame) for _, found, frame in drawn], room)
    items = [
        hiding.hide(model, found.parts(), found.values, fitted, f"tasks/{name}", frame) for name, found, frame in drawn
    ]
    parameters = {"n": n, "seed": seed, "length": fitted, "distractors": distractors, "chat": ask}
    return finish("needles", model, items, "fact", parameters, shorten="Lower length= or distractors=.")


def _item(
    name: str,
    split: Split,
    found: Fact,
    candidates: tuple[str, ...],
    chat: bool,
    context: str,
    fills: Mapping[str, Sequence[str]],
    factors: Mapping[str, str | int | float],
) -> TaskItem:
    asked = {"question": found.question} | ({} if chat else {"stem": found.stem})
    template = (CHAT if chat else PLAIN).format(context=context)
    kind = found.source.split("/")[0]
    return TaskItem(
        name,
        found.source,
        split,
        found.value,
        template,
        {**fills, **asked},
        candidates,
        chat,
        {**factors, "kind": kind},
    )
