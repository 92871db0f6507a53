"""A small task of intrinsic knowledge: facts that a language model knows by heart, asked for without any context.

It is the counterpart of retrieval when heads are removed: the answer is nowhere in the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from headscope.probes.tasks import ANSWER, Task
from headscope.probes.teacher import answer_ids

RELATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "capital": (
        "The capital of {subject} is",
        {
            "France": "Paris",
            "Italy": "Rome",
            "Japan": "Tokyo",
            "Russia": "Moscow",
            "England": "London",
            "Spain": "Madrid",
            "China": "Beijing",
            "Germany": "Berlin",
            "Egypt": "Cairo",
            "Greece": "Athens",
        },
    ),
    "opposite": (
        "The opposite of {subject} is",
        {"hot": "cold", "up": "down", "good": "bad", "left": "right", "black": "white", "large": "small"},
    ),
    "completion": (
        "{subject}",
        {
            "The days of the week are Monday,": "Tuesday",
            "The largest planet in the solar system is": "Jupiter",
            "Water is made of hydrogen and": "oxygen",
            "The author of Romeo and Juliet is William": "Shakespeare",
            "The first president of the United States was George": "Washington",
            "The theory of relativity was developed by Albert": "Einstein",
            "The Eiffel Tower is in the city of": "Paris",
            "The Great Wall of": "China",
        },
    ),
}


@dataclass(frozen=True)
class Fact:
    """One fact: a prompt that ends where the answer begins."""

    id: str
    source: str
    template: str
    subject: str
    answer: str
    factors: Mapping[str, str] = field(default_factory=dict, hash=False)

    kind: ClassVar[str] = "facts"

    def prompt(self, model: Any) -> Any:
        """Return the prompt, with the region ``"subject"``."""
        return model.prompt(self.template, subject=self.subject)


def facts() -> tuple[Fact, ...]:
    """All facts; each is a source of its own."""
    return tuple(
        Fact(f"{relation}-{i:02d}", f"{relation}-{i:02d}", template, subject, answer, {"relation": relation})
        for relation, (template, pairs) in RELATIONS.items()
        for i, (subject, answer) in enumerate(pairs.items())
    )


def knowledge_task() -> Task:
    """Complete facts from memory: mean log-probability of the answer's tokens, and exact match, as on needles."""
    return Task("knowledge", ANSWER, facts(), _complete, _prompt, ("subject",))


def _prompt(model: Any, fact: Fact) -> Any:
    return fact.prompt(model)


def _complete(model: Any, fact: Fact) -> list[float]:
    import torch

    prompt = fact.prompt(model)
    answer = answer_ids(model, prompt, fact.answer)
    # The prompts are so short that one pass over prompt and answer is cheaper than decoding.
    whole = model.prompt_from_ids([*prompt.ids, *answer], {"subject": prompt.regions["subject"]})
    logits = model.run(whole, logits=True).logits[0, len(prompt) - 1 : -1].double().cpu()
    gold = torch.tensor(answer)
    right = torch.log_softmax(logits, dim=-1).gather(1, gold[:, None])
    return [float(right.mean()), float((logits.argmax(dim=-1) == gold).all())]
