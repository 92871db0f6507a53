"""Prompts that show something at once, made for the model at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any, TypeAlias

from headscope.errors import DataError, RequestError

Region: TypeAlias = tuple[str, int, int]
"""Name, first character, and the one behind the last."""
Fields: TypeAlias = dict[str, Any]

ANSWER_ROOM = 64
"""Tokens left free behind the longest needle, so that the model can answer."""


@dataclass(frozen=True)
class Example:
    """A prompt of the menu.

    Parameters
    ----------
    key
        Names it in the page.
    label, about
        What the menu says.
    make
        Returns fields of a recipe, given something that has a tokenizer and ``spec.n_ctx``, and a length.
    lengths
        Tokens to choose from, if any; None stands for the whole context.
    """

    key: str
    label: str
    about: str
    make: Callable[[Any, int | None], Fields]
    lengths: tuple[int | None, ...] = ()


def pieces(*parts: str | tuple[str, str]) -> tuple[str, list[Region]]:
    """Join texts and (region, text) pairs."""
    text, regions = "", []
    for part in parts:
        name, piece = part if isinstance(part, tuple) else (None, part)
        if name is not None:
            regions.append((name, len(text), len(text) + len(piece)))
        text += piece
    return text, regions


def _fields(*parts: str | tuple[str, str], **others: Any) -> Fields:
    text, regions = pieces(*parts)
    plain: Fields = {"chat": False, "system": None, "new_tokens": 0, "edit": None}
    return {**plain, **others, "text": text, "regions": [list(region) for region in regions]}


def induction(model: Any, length: int | None) -> Fields:
    """Return a list of words that comes twice: at each word of the copy, induction heads look behind the original."""
    from headscope.data.documents import NOUNS

    words = Random("induction").sample(list(NOUNS), 24)
    listed = " ".join(words)
    return _fields(("first", listed), "\n", ("copy", listed))


def needle(model: Any, length: int | None) -> Fields:
    """Return a fact in the middle of a long text, and the question for it."""
    from headscope.data.needles import BASE, CHAT, needles
    from headscope.models.template import render

    room = model.spec.n_ctx
    top = None if room is None else room - ANSWER_ROOM
    if length is None:
        if top is None:
            raise RequestError("This model's context has no limit: choose a length.")
        length = top
    elif top is not None and length > top:
        raise RequestError(f"{length} tokens are too many for a context of {room}: choose a shorter example.")
    chat = getattr(model.tokenizer, "chat_template", None) is not None
    try:
        sample = needles(model, 1, lengths=[length], depths=[0.5], chat=chat)[0]
    except DataError as error:
        raise RequestError(f"A needle in {length} tokens cannot be made for this model: {error}") from error
    stack = [sample.before, sample.after]
    fills: Any = {"haystack": stack, "needle": sample.needle, "question": sample.question}
    text, spans = render(CHAT if chat else BASE, fills)
    (start, end), (asked, over) = spans["needle"][0], spans["question"][0]
    found = text.find(sample.answer, start, end)
    regions: list[Region] = [("needle", start, end), ("question", asked, over)]
    if found >= 0:
        regions.insert(1, ("answer", found, found + len(sample.answer)))
    made = _fields(text, chat=chat, new_tokens=min(16, sample.max_new_tokens))
    return {**made, "regions": [list(region) for region in regions]}


def sinks(model: Any, length: int | None) -> Fields:
    """Return plain prose: what most heads do with it is to look at its first token."""
    from headscope.data.prose import sentences

    text = "".join(islice(sentences(Random("sinks")), 12)).strip()
    return _fields(text)


def names(model: Any, length: int | None) -> Fields:
    """Return a sentence whose next word is the name that comes once (indirect object identification)."""
    return _fields(
        "When ",
        ("receiver", "Mary"),
        " and ",
        ("giver", "John"),
        " went to the store, ",
        ("giver", "John"),
        " gave a bottle of milk to",
        new_tokens=1,
    )


def instruction(model: Any, length: int | None) -> Fields:
    """Return a question with an instruction on its form, under a system message."""
    chats = getattr(model.tokenizer, "chat_template", None) is not None
    parts = (
        ("fact", "The ferry to the island leaves at six in the morning and comes back at nine in the evening."),
        "\n\nWhen does the ferry come back? ",
        ("instruction", "Answer with one word, in capital letters."),
    )
    system = "You are a helpful clerk at a harbour." if chats else None
    return _fields(*parts, *([] if chats else ["\nAnswer:"]), chat=chats, system=system, new_tokens=8)


EXAMPLES = (
    Example("induction", "Induction", "A list of words, twice: heads that look behind the first copy", induction),
    Example(
        "needle",
        "Needle in a haystack",
        "A fact inside a text of so many tokens, and a question for it",
        needle,
        (512, 2048, 4096, None),
    ),
    Example("sinks", "Sinks", "Plain prose: most heads rest on the first token", sinks),
    Example("names", "Who gets the milk", "Two names, one of them twice: the model writes the other", names),
    Example("instruction", "Chat with an instruction", "A question, and how to answer it", instruction),
)


def make(model: Any, key: str, length: int | None = None) -> Fields:
    """Return the fields of an example's recipe.

    Raises
    ------
    RequestError
        If there is no such example, or it cannot be made for this model.
    """
    for example in EXAMPLES:
        if example.key == key:
            return example.make(model, length)
    raise RequestError(f"There is no example {key!r}.")
