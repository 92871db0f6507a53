"""Regions: from spans of characters to sets of token positions.

The rule: a token belongs to a region when at least one of the characters that it stands for lies in the region's
span. White space at the edges of a token does not count (`` code`` belongs to what holds ``code``), unless the token
is white space only. So a token across the border of two regions belongs to both, and all tokens of a character
that was split into bytes belong where the character lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headscope.errors import PromptError
from headscope.models.template import Span


@dataclass(frozen=True)
class Encoded:
    """Tokens of a text.

    ``offsets[i]`` are the characters that token i stands for; empty for tokens that the tokenizer added, which
    ``added`` marks.
    """

    ids: tuple[int, ...]
    offsets: tuple[Span, ...]
    added: tuple[bool, ...]


def encode(tokenizer: Any, text: str, *, add_special_tokens: bool) -> Encoded:
    """Tokenise ``text`` with the offsets of every token.

    Raises
    ------
    PromptError
        If there is no tokenizer, it gives no offsets, or the text has no token.
    """
    if tokenizer is None:
        raise PromptError("The model has no tokenizer. Build the prompt from token ids: Prompt.from_ids(ids, regions).")
    if not getattr(tokenizer, "is_fast", False):
        raise PromptError(
            f"{type(tokenizer).__name__} gives no character offsets, so named regions cannot be located. Load the fast "
            "tokenizer (tokenizer.json), or build the prompt from token ids: Prompt.from_ids(ids, regions)."
        )
    result = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False)
    ids = tuple(int(i) for i in result["input_ids"])
    if not ids:
        raise PromptError(f"The tokenizer makes no token of the prompt {text[:40]!r}. Give it text.")
    added = tuple(sequence is None for sequence in result.sequence_ids(0))
    return Encoded(ids, _restore(text, result["offset_mapping"], added), added)


def _restore(text: str, offsets: Sequence[Span], added: Sequence[bool]) -> tuple[Span, ...]:
    """Give tokens of white space back the extent that byte-level tokenizers trim to nothing."""
    restored: list[Span] = []
    reached = 0
    for (start, end), special in zip(offsets, added, strict=True):
        if special:
            restored.append((reached, reached))
            continue
        if start == end and reached < end and text[reached:end].isspace():
            start = reached
        restored.append((int(start), int(end)))
        reached = max(reached, end)
    return tuple(restored)


def _trim(text: str, span: Span) -> Span:
    start, end = span
    piece = text[start:end]
    if not piece or piece.isspace():
        return span
    return start + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))


def covering(text: str, offsets: Sequence[Span], spans: Mapping[str, Iterable[Span]]) -> dict[str, tuple[int, ...]]:
    """Token positions of each name's character spans, by the rule above.

    Raises
    ------
    PromptError
        If a name's characters have no token (the tokenizer dropped them).
    """
    trimmed = [_trim(text, span) for span in offsets]
    return {name: _positions(name, text, offsets, trimmed, list(spans[name])) for name in spans}


def _positions(
    name: str, text: str, offsets: Sequence[Span], trimmed: Sequence[Span], spans: Sequence[Span]
) -> tuple[int, ...]:
    # A fill of spaces may live in the trimmed edge of a token only, or in the gap that a trimming tokenizer leaves.
    gaps = [(min(start, before), end) for (start, end), before in zip(offsets, _reached(offsets), strict=True)]
    for extents in (trimmed, gaps):
        found = {
            position
            for start, end in spans
            for position, (first, last) in enumerate(extents)
            if first < last and max(first, start) < min(last, end)
        }
        if found:
            return tuple(sorted(found))
        if not all(text[start:end].isspace() for start, end in spans):
            break
    shown = ", ".join(repr(text[start:end][:40]) for start, end in spans)
    raise PromptError(
        f"The tokenizer makes no token of region {name!r} ({shown}). Give it text that the model can read."
    )


def _reached(offsets: Sequence[Span]) -> list[int]:
    """For each token, the end of the text that tokens before it stand for."""
    reached, out = 0, []
    for start, end in offsets:
        out.append(reached if start < end else end)
        reached = max(reached, end)
    return out


def pieces(tokenizer: Any, text: str, encoded: Encoded) -> tuple[str, ...]:
    """Readable text of every token: its characters with the space before it, or its name if the tokenizer added it."""
    names = tokenizer.convert_ids_to_tokens(list(encoded.ids))
    out: list[str] = []
    for name, (start, end), before in zip(names, encoded.offsets, _reached(encoded.offsets), strict=True):
        if start == end:
            out.append(str(name))
        else:
            out.append(text[before if before < start and text[before:start].isspace() else start : end])
    return tuple(out)
