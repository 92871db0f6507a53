"""Prompts with a method on them that show something at once, for a page where nothing has run yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any

from dash import dcc, html

from headscope.app.examples import Region, pieces

SENTENCES = 38
"""About 750 tokens of prose: SmolLM2-135M no longer does what stands before them."""


@dataclass(frozen=True)
class Example:
    """A prompt and a method.

    Parameters
    ----------
    label, about
        What the page says.
    text
        Returns the prompt and its regions.
    method, fields, heads
        What is put in force; heads as an address has them.
    new_tokens, chat
        As in a recipe.
    """

    label: str
    about: str
    text: Callable[[], tuple[str, list[Region]]]
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    heads: str = ""
    new_tokens: int = 24
    chat: bool = False


def _letter() -> tuple[str, list[Region]]:
    from headscope.data.prose import sentences

    prose = "".join(islice(sentences(Random("pasta")), SENTENCES)).strip()
    return pieces(("instruction", "Answer in French."), f"\n\n{prose}\n\n", ("question", "What is bread made of?"))


def _fact() -> tuple[str, list[Region]]:
    return pieces(
        ("fact", "The code of the lighthouse is 7421."),
        " The baker sells bread in the morning. The boat to the island leaves at noon.\n"
        "Question: What is the code of the lighthouse?\nAnswer: The code of the lighthouse is",
    )


def _segments() -> tuple[str, list[Region]]:
    return pieces(
        "Read these notes.\n",
        ("first", "Anna keeps the red key in the kitchen.\n"),
        ("second", "Boris keeps the blue key in the garden.\n"),
        ("third", "Clara keeps the green key in the attic.\n"),
        "Question: Where is the blue key?\nAnswer: The blue key is in the",
    )


EXAMPLES = {
    "instruction": Example(
        "An instruction, lost in a long text",
        "PASTA turns the heads of middle layers to an instruction before 750 tokens of prose",
        _letter,
        "pasta",
        {"alpha": "0.1", "region": "instruction"},
        "8-20.*",
        chat=True,
    ),
    "fact": Example(
        "A fact that must not be read",
        "KnockOut hides the sentence that holds the answer",
        _fact,
        "knockout",
        {"source": "fact"},
        new_tokens=16,
    ),
    "sink": Example(
        "Less rest on the first token",
        "ZeroTuning takes attention from the sink and gives it to the text",
        _fact,
        "zerotuning",
        {"gamma": "0.1"},
        new_tokens=16,
    ),
    "layers": Example(
        "A layer removed",
        "Ablation sets the outputs of all heads of a layer, and of its MLP, to zero",
        _fact,
        "ablation",
        {"layers": "15"},
        "none",
        new_tokens=16,
    ),
    "order": Example(
        "Notes in no order",
        "PINE lets three notes see each other, so that their order changes nothing",
        _segments,
        "pine",
        {"segments": "first,second,third"},
        new_tokens=8,
    ),
}


def fields(key: str) -> dict[str, Any]:
    """Return an example as fields of the prompt's form; nothing for a key that is none."""
    if key not in EXAMPLES:
        return {}
    example = EXAMPLES[key]
    text, regions = example.text()
    shown = [list(region) for region in regions]
    return {"text": text, "regions": shown, "chat": example.chat, "system": None, "new_tokens": example.new_tokens}


def query(key: str) -> dict[str, str]:
    """Return an example's method as an address has it."""
    if key not in EXAMPLES:
        return {}
    example = EXAMPLES[key]
    values = {f"set.{name}": value for name, value in example.fields.items()}
    return {"method": example.method, **values, **({"heads": example.heads} if example.heads else {})}


def starters() -> html.Div:
    """Return the examples as links."""
    rows = [
        html.Li(
            [
                dcc.Link(example.label, href=f"/steer?example={key}", className="starter"),
                html.Span(example.about, className="soft"),
            ]
        )
        for key, example in EXAMPLES.items()
    ]
    return html.Div([html.H2("Or begin with"), html.Ul(rows)], className="starters")
