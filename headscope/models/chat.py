"""Chat templates: render a message and find, for certain, where in the rendered text it went."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headscope.errors import PromptError
from headscope.models.template import Span

_TRIMS: tuple[Callable[[str], str], ...] = (str, str.strip, str.rstrip, str.lstrip)
"""What chat templates do to a message: nothing, or white space cut off."""


def render_chat(tokenizer: Any, message: str, system: str | None = None) -> tuple[str, Span, int, Span | None]:
    """Render one user message, ready for the model's answer.

    The template is rendered twice, with marks in place of the messages and with the messages. What stands around the
    marks must stand around the messages too; so a message whose words also occur in the markup is never mistaken.

    Returns
    -------
    text
        The whole chat text.
    user
        Where the user message is in it.
    trimmed
        How many characters the template cut from the start of the message.
    system
        Where the system message is, if one was given.

    Raises
    ------
    PromptError
        If there is no chat template, it refuses the messages, or it rewrites them so that they cannot be located.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise PromptError(
            "This tokenizer has no chat template. Leave chat=False, or set model.tokenizer.chat_template first."
        )
    messages = {"user": message} if system is None else {"system": system, "user": message}
    text = _apply(tokenizer, messages)
    marks = {role: _mark(role, text) for role in messages}
    marked = _apply(tokenizer, marks)
    for role, mark in marks.items():
        if (found := marked.count(mark)) != 1:
            raise PromptError(
                f"The chat template writes the {role} message {found} times, so its regions cannot be located. "
                "Render the chat yourself and use Prompt.from_text(tokenizer, text, spans)."
            )
    # Whichever message comes first in the text; some templates put the system message inside the user's turn.
    roles = sorted(marks, key=lambda role: marked.index(marks[role]))
    literals, tail = [], marked
    for role in roles:
        head, tail = tail.split(marks[role])
        literals.append(head)
    variants = [list(dict.fromkeys(trim(messages[role]) for trim in _TRIMS)) for role in roles]
    for chosen in _combinations(variants):
        if text == "".join(literal + body for literal, body in zip(literals, chosen, strict=True)) + tail:
            break
    else:
        raise PromptError(
            "The chat template rewrites the messages, so regions in them cannot be located. "
            "Render the chat yourself and use Prompt.from_text(tokenizer, text, spans)."
        )
    spans: dict[str, Span] = {}
    position = 0
    for role, literal, body in zip(roles, literals, chosen, strict=True):
        position += len(literal)
        spans[role] = (position, position + len(body))
        position += len(body)
    kept = text[slice(*spans["user"])]
    trimmed = 0 if message.startswith(kept) else len(message) - len(message.lstrip())
    return text, spans["user"], trimmed, spans.get("system")


def _apply(tokenizer: Any, messages: dict[str, str]) -> str:
    import jinja2

    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages.items()],
            tokenize=False,
            add_generation_prompt=True,
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        hint = " Some models take no system message: leave out system=." if "system" in messages else ""
        raise PromptError(f"The chat template refuses the messages: {error}.{hint}") from error
    return str(rendered)


def _mark(role: str, text: str) -> str:
    """Return a word that ``text`` does not hold and that no template trims."""
    mark = f"\ue000{role}\ue001"
    while mark in text:
        mark = f"\ue000{mark}\ue001"
    return mark


def _combinations(variants: list[list[str]]) -> list[tuple[str, ...]]:
    combined: list[tuple[str, ...]] = [()]
    for options in variants:
        combined = [(*done, option) for done in combined for option in options]
    return combined
