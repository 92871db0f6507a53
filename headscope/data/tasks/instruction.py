"""An instruction at the top of a long context: in which form the question at its end is to be answered.

The candidates are the right answer in each form, so that what is told apart is whether the instruction was followed,
not whether the answer was found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Literal, get_args

from headscope.data.tasks import facts
from headscope.data.tasks.facts import Fact
from headscope.data.tasks.task import (
    Split,
    Task,
    TaskItem,
    Verdict,
    around,
    chats,
    finish,
    first_line,
    room_for,
    sizes,
    within,
)
from headscope.errors import DataError, nearest

TEMPLATES = {
    "top": "{{instruction}}\n{examples}\n{context}\n\nQuestion: {{question}}",
    "end": "{{instruction}}\n\n{context}\n\n{examples}Question: {{question}}",
}
"""By where the examples are; prompts without chat template go on with ``Answer:``."""
Place = Literal["top", "end", "mixed"]
EXAMPLES = (
    ("What did the guest bring?", "pears"),
    ("What lay under the table?", "paper"),
    ("What did the children find?", "shells"),
    ("What was in the basket?", "bread"),
    ("What did the cook forget?", "salt"),
    ("What fell from the roof?", "snow"),
)


@dataclass(frozen=True)
class Form:
    """A form of answers: ways to ask for it, a value in it, and whether a line with the value has it."""

    wordings: tuple[str, ...]
    write: Callable[[str], str]
    has: Callable[[str, str], bool]


def _within(opening: str, closing: str, line: str, value: str) -> bool:
    held = re.findall(rf"[{opening}]([^{closing}]*)[{closing}]", line)
    return any(_holds(inner, value) for inner in held)


def _holds(text: str, value: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None


FORMS: dict[str, Form] = {
    "capitals": Form(
        ("Write every answer in capital letters, like BREAD.", "Answers must be in upper case, like BREAD."),
        str.upper,
        lambda line, value: line.upper() == line,
    ),
    "brackets": Form(
        ("Put every answer in square brackets, like [bread].", "Answers must stand in brackets, like [bread]."),
        lambda value: f"[{value}]",
        partial(_within, r"\[", r"\]"),
    ),
    "quotes": Form(
        ('Put every answer in quotation marks, like "bread".', 'Answers must stand in quotes, like "bread".'),
        lambda value: f'"{value}"',
        partial(_within, '"“', '"”'),
    ),
    "twice": Form(
        ("Give every answer twice, like bread bread.", "Say each answer two times, like bread bread."),
        lambda value: f"{value} {value}",
        lambda line, value: len(re.findall(rf"(?<!\w){re.escape(value)}(?!\w)", line, re.IGNORECASE)) == 2,
    ),
    "exclamation": Form(
        ("Put an exclamation mark after every answer, like bread!", "Answers must end in a shout, like bread!"),
        lambda value: f"{value}!",
        lambda line, value: line.endswith("!"),
    ),
    "word": Form(
        ("Begin every answer with the word Surely, like Surely bread.", "Put Surely before each answer: Surely bread."),
        lambda value: f"Surely {value}",
        lambda line, value: re.match(r"surely\b", line, re.IGNORECASE) is not None,
    ),
}


@dataclass(frozen=True)
class InstructionItem(TaskItem):
    """Adds the value that is asked for, and the form that it is asked for in."""

    value: str = ""
    form: str = ""

    def verdict(self, text: str) -> Verdict:
        """Judge a model's text by its first line.

        Valid if the line holds the value that was asked for, in whatever form. Correct if it has the form of the
        instruction too. The label is the value in the form that the line has, None where it has none of them.
        """
        line = first_line(text)
        if not _holds(line, self.value):
            return Verdict(False, False)
        has = [name for name, form in FORMS.items() if form.has(line, self.value)]
        # A line may have two forms; that of the instruction counts.
        shown = self.form if self.form in has else next(iter(has), None)
        return Verdict(True, self.form in has, None if shown is None else FORMS[shown].write(self.value))


def build(
    model: Any,
    n: int,
    seed: int,
    *,
    length: int | None = None,
    forms: Sequence[str] | None = None,
    distractors: int = 0,
    shots: int = 4,
    place: Place = "mixed",
    chat: bool | None = None,
) -> Task:
    """Make questions whose answers are to have a form; see ``headscope.data.tasks.make``.

    Parameters
    ----------
    length
        Tokens of each prompt; by default 200, or twice what instruction, facts and question take.
    forms
        Which of capitals, brackets, quotes, twice, exclamation, word; at least two; by default all.
    distractors
        Facts of the same form beside the one that is asked for, 0 to 6.
    shots
        Questions with an answer in the form, 0 to 4.
    place
        Where these are: at the ``"top"``, with the instruction; at the ``"end"``, before the question; or ``"mixed"``,
        half of the items each. From the top small models seldom carry the form to the answer, from the end they often
        do: mixed items leave room in both directions.
    """
    ask = chats(model, "instruction", chat, default=False)
    within("distractors", distractors, 0, facts.MOST)
    within("shots", shots, 0, 4)
    if place not in get_args(Place):
        raise DataError(f"There is no place {place!r} of examples.{nearest(str(place), get_args(Place))}")
    chosen = tuple(FORMS if forms is None else dict.fromkeys(forms))
    for form in chosen:
        if form not in FORMS:
            raise DataError(f"There is no form {form!r} of answers.{nearest(form, FORMS)}")
    if len(chosen) < 2:
        raise DataError(f"forms={list(chosen)}: give at least two, or there is nothing to tell apart.")
    drawn: list[tuple[str, Fact, facts.Frame]] = []
    for split, count in sizes(n).items():
        rng = Random(f"tasks/instruction/{seed}/{split}")
        wanted = around(chosen, count, rng)
        places = around(("top", "end") if place == "mixed" else (place,), count, rng)
        for number, source in enumerate(around(facts.sources(plain=True)[split], count, rng)):
            found = facts.draw(split, source, distractors, rng)
            form, name = wanted[number], f"instruction-{seed}-{split}-{number:04d}"
            candidates = tuple(FORMS[other].write(found.value) for other in chosen)
            told = {"instruction": rng.choice(FORMS[form].wordings)}
            if shots:
                shown = [(question, FORMS[form].write(answer)) for question, answer in rng.sample(EXAMPLES, shots)]
                told["examples"] = "\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in shown)
            drawn.append((name, found, partial(_item, name, split, found, form, places[number], told, candidates, ask)))
    room = room_for(model, (FORMS[form].write(found.value) for _, found, _ in drawn for form in chosen))
    fitted = facts.length_of(model, length, [facts.bare(found, frame) for _, found, frame in drawn], room)
    items = [facts.hide(model, found, fitted, f"tasks/{name}", frame) for name, found, frame in drawn]
    parameters = {"n": n, "seed": seed, "length": fitted, "forms": list(chosen), "chat": ask}
    parameters |= {"distractors": distractors, "shots": shots, "place": place}
    return finish("instruction", model, items, "instruction", parameters, shorten="Lower length=.")


def _item(
    name: str,
    split: Split,
    found: Fact,
    form: str,
    place: str,
    told: Mapping[str, str],
    candidates: tuple[str, ...],
    chat: bool,
    context: str,
    fills: Mapping[str, Sequence[str]],
    factors: Mapping[str, str | int | float],
) -> TaskItem:
    examples = "{examples}\n" if "examples" in told else ""
    template = TEMPLATES[place].format(context=context, examples=examples) + ("" if chat else "\nAnswer:")
    return InstructionItem(
        id=name,
        source=found.source,
        split=split,
        gold=FORMS[form].write(found.value),
        template=template,
        fills={**told, **fills, "question": found.question},
        answers=candidates,
        chat=chat,
        factors={**factors, "form": form, "place": place},
        value=found.value,
        form=form,
    )
