"""Topic of a line of news, few-shot: its source is a field of the topic, with words of its own."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

from headscope.data.dataset import resource
from headscope.data.prose import capital
from headscope.data.tasks.few_shot import Classification, Example
from headscope.data.tasks.task import SPLITS, Split, Task, divide

FORMS = {"plain": 0.5, "witness": 0.35, "hearsay": 0.15}
"""How a line is written: by itself; told by somebody of another topic; so told, and without saying who did it."""


def build(model: Any, n: int, seed: int, *, shots: int = 4, chat: bool | None = None) -> Task:
    """Make lines of news to tell the topic of; see ``headscope.data.tasks.make``."""
    sources = _sources()
    labels = tuple(_resource()["topics"])
    return Classification(
        "topic",
        labels,
        ("News", "Topic"),
        f"Is the topic of the news {', '.join(labels[:-1])} or {labels[-1]}? Answer with one word.",
        sources,
        news,
    ).task(model, n, seed, shots, chat)


@cache
def _resource() -> dict[str, Any]:
    loaded: dict[str, Any] = resource("topic.json")
    return loaded


@cache
def _sources() -> dict[Split, dict[str, list[str]]]:
    """Return the fields of each topic, by split."""
    divided = {label: divide(f"topic/{label}", list(fields)) for label, fields in _resource()["topics"].items()}
    return {split: {label: parts[split] for label, parts in divided.items()} for split in SPLITS}


def news(split: Split, field: str, label: str, rng: Random) -> Example:
    """Write one line of news."""
    topics = _resource()["topics"]
    agents, acts = topics[label][field]
    agent, act, setting = rng.choice(agents), rng.choice(acts), rng.choice(_resource()["settings"])
    form = rng.choices(list(FORMS), list(FORMS.values()))[0]
    if form == "plain":
        text = f"{agent} {act} {setting}." if rng.random() < 0.5 else f"{setting}, {agent} {act}."
        return Example(capital(text), label, field, form)
    other = rng.choice([topic for topic in topics if topic != label])
    witness = rng.choice(topics[other][rng.choice(_sources()[split][other])][0])
    shapes = [f"{setting}, {agent} {act}, as we heard from {witness}.", f"they {act} {setting}, said {witness}."]
    return Example(capital(shapes[form == "hearsay"]), label, field, form)
