"""Truncation of a prompt between its regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from headscope.errors import PromptError
from headscope.models.regions import Encoded
from headscope.models.template import Span

Truncate = Literal["left", "right", "middle"]


def cut_tokens(
    text: str,
    encoded: Encoded,
    regions: Mapping[str, tuple[int, ...]],
    body: Span | None,
    excess: int,
    side: Truncate,
) -> tuple[str, Encoded, dict[str, tuple[int, ...]]]:
    """Take ``excess`` tokens out of the text, never part of a character, a region, or the chat's markup."""
    first, last = body or (0, len(text))
    window = [
        i for i, (start, end) in enumerate(encoded.offsets) if not encoded.added[i] and first <= start and end <= last
    ]
    total = len(encoded.ids)
    if excess >= len(window):
        raise PromptError(
            f"The prompt has {total} tokens and only {len(window)} of them may be cut, which leaves none of the text. "
            f"Allow more than {total - len(window)} tokens."
        )
    begin = {"left": 0, "right": len(window) - excess, "middle": (len(window) - excess) // 2}[side]
    low, high = window[begin], window[begin + excess - 1] + 1
    # A character that is split into several tokens goes as a whole.
    while low > window[0] and _share(encoded.offsets[low - 1], encoded.offsets[low]):
        low -= 1
    while high <= window[-1] and _share(encoded.offsets[high - 1], encoded.offsets[high]):
        high += 1
    for name, positions in regions.items():
        if lost := sum(low <= i < high for i in positions):
            raise PromptError(
                f"Cutting {high - low} tokens ({side}) would lose {lost} of the {len(positions)} tokens of region "
                f"{name!r}. Cut elsewhere, shorten the text yourself, or allow more than {total - excess} tokens."
            )
    start = max([0, *(end for _, end in encoded.offsets[:low])])
    end = max([start, *(end for _, end in encoded.offsets[:high])])
    shorter = text[:start] + text[end:]
    offsets = [
        (a, b) if i < low else (max(a, end) - (end - start), max(b, end) - (end - start))
        for i, (a, b) in enumerate(encoded.offsets)
        if not low <= i < high
    ]
    keep = [i for i in range(total) if not low <= i < high]
    moved = {name: tuple(i if i < low else i - (high - low) for i in positions) for name, positions in regions.items()}
    cut = Encoded(tuple(encoded.ids[i] for i in keep), tuple(offsets), tuple(encoded.added[i] for i in keep))
    return shorter, cut, moved


def _share(left: Span, right: Span) -> bool:
    return max(left[0], right[0]) < min(left[1], right[1])
