"""Few-shot classification: labelled examples, then a text whose label is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from headscope.data.tasks.task import Split, Task, TaskItem, around, chats, finish, fresh, sizes, within

MOST = 16


@dataclass(frozen=True)
class Example:
    """A text with its label, what it is about, how it says it, and the words that tell."""

    text: str
    label: str
    source: str
    form: str = "plain"
    words: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Classification:
    """What is to be told apart.

    Attributes
    ----------
    name
        Of the task.
    labels
        Candidates of all items.
    titles
        What a text and its label are called in the prompt.
    request
        What is asked where there are no demonstrations to say it, or under a chat template.
    sources
        Sources of each label in each split.
    draw
        Writes a text for split, source and label.
    """

    name: str
    labels: tuple[str, ...]
    titles: tuple[str, str]
    request: str
    sources: Mapping[Split, Mapping[str, Sequence[str]]]
    draw: Callable[[Split, str, str, Random], Example]

    def task(self, model: Any, n: int, seed: int, shots: int, chat: bool | None) -> Task:
        """Return n items with as many demonstrations each as ``shots``.

        Labels are balanced in each split, to within one, and so are the demonstrations of each item, which come in
        random order. They are about other sources of the same split than the text and each other, and share no
        telling word with the text.
        """
        ask = chats(model, self.name, chat, default=False)
        within("shots", shots, 0, MOST)
        items: list[TaskItem] = []
        seen: set[str] = set()
        for split, count in sizes(n).items():
            rng = Random(f"tasks/{self.name}/{seed}/{split}")
            # Labels with the same sources go round them together.
            sources = {label: tuple(self.sources[split][label]) for label in self.labels}
            queues = {names: iter(around(names, count, rng)) for names in dict.fromkeys(sources.values())}
            for number, label in enumerate(around(self.labels, count, rng)):
                name = f"{self.name}-{seed}-{split}-{number:04d}"
                items.append(
                    fresh(seen, partial(self._item, name, split, next(queues[sources[label]]), label, shots, ask, rng))
                )
        parameters = {"n": n, "seed": seed, "shots": shots, "chat": ask}
        return finish(self.name, model, items, "text", parameters, answers=self.labels, shorten="Lower shots=.")

    def _item(self, name: str, split: Split, source: str, label: str, shots: int, chat: bool, rng: Random) -> TaskItem:
        asked = self.draw(split, source, label, rng)
        shown: list[Example] = []
        for kind in around(self.labels, shots, rng):
            used = {source, *(example.source for example in shown)}
            others = [other for other in self.sources[split][kind] if other not in used]
            while True:
                example = self.draw(split, rng.choice(others), kind, rng)
                if not example.words & asked.words:
                    break
            shown.append(example)
        rng.shuffle(shown)
        first, second = self.titles
        lines = [f"{first}: {{text}}\n{second}:"]
        fills = {"text": asked.text}
        if shown:
            lines.insert(0, "{demonstrations}")
            fills["demonstrations"] = "\n\n".join(f"{first}: {e.text}\n{second}: {e.label}" for e in shown)
        if chat or not shown:
            lines.insert(0, self.request)
        factors: dict[str, str | int | float] = {"form": asked.form, "shots": shots}
        return TaskItem(name, source, split, label, "\n\n".join(lines), fills, self.labels, chat, factors)
