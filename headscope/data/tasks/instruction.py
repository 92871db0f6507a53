"""An instruction at the top of a long context: in which form the question at its end is to be answered.

The questions are of the kind that everybody can answer, and the context says nothing about them. The candidates are
the right answer in each form. So what is told apart is whether the instruction was followed, not what the model knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from random import Random
from typing import Any, Literal, get_args

from headscope.data.dataset import resource
from headscope.data.tasks import hiding
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
    shots: int = 1,
    place: Place = "mixed",
    chat: bool | None = None,
) -> Task:
    """Make questions whose answers are to have a form; see ``headscope.data.tasks.make``.

    Parameters
    ----------
    length
        Tokens of each prompt; by default 200, or twice what instruction, examples and question take.
    forms
        Which of capitals, brackets, quotes, twice, exclamation, word; at least two; by default all.
    shots
        Questions with an answer in the form, 0 to 4.
    place
        Where these are: at the ``"top"``, with the instruction; at the ``"end"``, before the question; or ``"mixed"``,
        half of the items each. From the end small models carry the form to the answer more often than from the top.
    """
    ask = chats(model, "instruction", chat, default=False)
    within("shots", shots, 0, 4)
    if place not in get_args(Place):
        raise DataError(f"There is no place {place!r} of examples.{nearest(str(place), get_args(Place))}")
    chosen = tuple(FORMS if forms is None else dict.fromkeys(forms))
    for form in chosen:
        if form not in FORMS:
            raise DataError(f"There is no form {form!r} of answers.{nearest(form, FORMS)}")
    if len(chosen) < 2:
        raise DataError(f"forms={list(chosen)}: give at least two, or there is nothing to tell apart.")
    drawn: list[tuple[str, str, hiding.Frame]] = []
    for split, count in sizes(n).items():
        rng = Random(f"tasks/instruction/{seed}/{split}")
        wanted = around(chosen, count, rng)
        places = around(("top", "end") if place == "mixed" else (place,), count, rng)
        for number, question in enumerate(around(_questions()[split], count, rng)):
            value = _common()[question]
            form, name = wanted[number], f"instruction-{seed}-{split}-{number:04d}"
            candidates = tuple(FORMS[other].write(value) for other in chosen)
            told = {"instruction": rng.choice(FORMS[form].wordings), "question": question}
            if shots:
                others = [other for other in _questions()[split] if _common()[other] != value]
                told["examples"] = "\n".join(
                    f"Question: {other}\nAnswer: {FORMS[form].write(_common()[other])}"
                    for other in rng.sample(others, shots)
                )
            drawn.append((name, value, partial(_item, name, split, value, form, places[number], told, candidates, ask)))
    room = room_for(model, (FORMS[form].write(value) for _, value, _ in drawn for form in chosen))
    fitted = hiding.length_of(model, length, [hiding.bare((), frame) for _, _, frame in drawn], room)
    items = [hiding.hide(model, (), (value,), fitted, f"tasks/{name}", frame) for name, value, frame in drawn]
    parameters = {"n": n, "seed": seed, "length": fitted, "forms": list(chosen), "chat": ask}
    parameters |= {"shots": shots, "place": place}
    return finish("instruction", model, items, "instruction", parameters, shorten="Lower length=.")


@cache
def _common() -> dict[str, str]:
    loaded: dict[str, str] = resource("common.json")
    return loaded


@cache
def _questions() -> dict[Split, list[str]]:
    return divide("instruction", list(_common()))


def _item(
    name: str,
    split: Split,
    value: str,
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
        source=told["question"],
        split=split,
        gold=FORMS[form].write(value),
        template=template,
        fills={**told, **fills},
        answers=candidates,
        chat=chat,
        factors={**factors, "form": form, "place": place},
        value=value,
        form=form,
    )
