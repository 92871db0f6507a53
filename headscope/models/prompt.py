"""Prompts: tokens that know where the named parts of the text went.

``build_prompt`` puts fills into a template and finds their tokens through the tokenizer's character offsets; the rule
for tokens on a border is in ``headscope.models.regions``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from headscope.errors import PromptError, nearest
from headscope.models.chat import render_chat
from headscope.models.regions import Encoded, covering, encode, pieces
from headscope.models.template import Fill, Span, check_name, render
from headscope.models.truncation import Truncate, cut_tokens


@dataclass(frozen=True)
class Prompt:
    """Token ids with named regions.

    Attributes
    ----------
    ids
        Token ids.
    text
        The text that the tokens stand for, chat markup included; tokens that the tokenizer added are not in it.
    regions
        Sorted token positions of each named region. ``"bos"`` is always there: the first token.
    offsets
        Characters of ``text`` that each token stands for; empty for tokens that the tokenizer added.
    tokens
        Readable text of each token.
    """

    ids: tuple[int, ...]
    text: str
    regions: dict[str, tuple[int, ...]] = field(hash=False)
    offsets: tuple[Span, ...] = field(repr=False)
    pieces: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> list[str]:
        """Readable text of each token."""
        return list(self.pieces)

    def positions(self, name: str) -> tuple[int, ...]:
        """Token positions of a region, or of ``"all"`` tokens or the ``"last"`` one.

        Raises
        ------
        PromptError
            If there is no region of that name; ``"rest"`` has a meaning only beside other regions, see ``partition``.
        """
        if name == "all":
            return tuple(range(len(self)))
        if name == "last":
            return (len(self) - 1,)
        if name not in self.regions:
            raise PromptError(f"The prompt has no region {name!r}.{nearest(name, [*self.regions, 'all', 'last'])}")
        return self.regions[name]

    def region_text(self, name: str) -> str:
        """Text that a region's tokens stand for; a character that was split into several tokens comes once."""
        out, reached, last = "", 0, -1
        for i in self.positions(name):
            start, end = self.offsets[i]
            # Tokenizers may leave the space between two words to neither.
            gap = last == i - 1 and self.text[reached:start].isspace()
            out += self.text[reached if gap else max(start, reached) : end]
            reached, last = max(reached, end), i
        return out

    def find(self, substring: str, occurrence: int | None = None, *, within: str | None = None) -> tuple[int, ...]:
        """Token positions of a piece of the text.

        Parameters
        ----------
        substring
            What to look for, to the letter.
        occurrence
            Which one, from 0 (or −1 for the last), when there are several.
        within
            Count only what lies inside this region.

        Raises
        ------
        PromptError
            If the text does not hold it, or holds it several times and no occurrence is chosen.
        """
        if not substring:
            raise PromptError("find() needs text to look for, got the empty string.")
        spans: dict[str, list[Span]] = {}
        start = self.text.find(substring)
        while start >= 0:
            spans[str(start)] = [(start, start + len(substring))]
            start = self.text.find(substring, start + 1)
        tokens = list(covering(self.text, self.offsets, spans).values())
        if within is not None:
            inside = set(self.positions(within))
            tokens = [found for found in tokens if inside.issuperset(found)]
        where = f" in region {within!r}" if within is not None else ""
        if not tokens:
            raise PromptError(f"The prompt does not hold {substring!r}{where}. Look at prompt.text.")
        if occurrence is None and len(tokens) > 1:
            raise PromptError(
                f"The prompt holds {substring!r} {len(tokens)} times{where}: "
                f"choose one with occurrence=0 to {len(tokens) - 1}."
            )
        try:
            return tokens[occurrence or 0]
        except IndexError:
            raise PromptError(
                f"occurrence={occurrence} is out of range: the prompt holds {substring!r} {len(tokens)} times{where}."
            ) from None

    def with_regions(self, regions: Mapping[str, Iterable[int]]) -> Prompt:
        """Return the prompt with more regions, given as token positions (negative ones count from the end)."""
        return replace(self, regions=self.regions | _checked(regions, len(self)))

    def continued(self, ids: Iterable[int], tokenizer: Any) -> Prompt:
        """Return the prompt with what a model wrote after it as region ``"generated"``; itself if that is nothing."""
        ids = tuple(int(i) for i in ids)
        if not ids:
            return self
        written = tuple(f"⟨{i}⟩" if tokenizer is None else str(tokenizer.decode([i])) for i in ids)
        ends = list(itertools.accumulate(map(len, written), initial=len(self.text)))
        regions = self.regions | {"generated": tuple(range(len(self), len(self) + len(ids)))}
        return replace(
            self,
            ids=(*self.ids, *ids),
            text=self.text + "".join(written),
            regions=regions,
            offsets=(*self.offsets, *itertools.pairwise(ends)),
            pieces=(*self.pieces, *written),
        )

    @classmethod
    def from_text(
        cls,
        tokenizer: Any,
        text: str,
        spans: Mapping[str, Span | Iterable[Span]] | None = None,
        *,
        add_special_tokens: bool = True,
        n_ctx: int | None = None,
    ) -> Prompt:
        """Build a prompt from finished text and the characters, one [start, end) or several, of each region."""
        listed = {name: _as_spans(name, value, text) for name, value in (spans or {}).items()}
        encoded = encode(tokenizer, text, add_special_tokens=add_special_tokens)
        _check_context(len(encoded.ids), n_ctx)
        return _assemble(tokenizer, text, encoded, covering(text, encoded.offsets, listed))

    @classmethod
    def from_ids(
        cls,
        ids: Iterable[int],
        regions: Mapping[str, Iterable[int]] | None = None,
        tokenizer: Any = None,
        *,
        n_ctx: int | None = None,
    ) -> Prompt:
        """Build a prompt from token ids and the token positions of each region.

        With a tokenizer the tokens are readable; without, they show as ``⟨id⟩``.
        """
        ids = tuple(int(i) for i in ids)
        if not ids:
            raise PromptError("A prompt needs at least one token id.")
        _check_context(len(ids), n_ctx)
        shown = tuple(f"⟨{i}⟩" if tokenizer is None else tokenizer.decode([i]) for i in ids)
        ends = [0]
        for piece in shown:
            ends.append(ends[-1] + len(piece))
        offsets = tuple(itertools.pairwise(ends))
        return cls(ids, "".join(shown), {"bos": (0,)} | _checked(regions or {}, len(ids)), offsets, shown)


def build_prompt(
    tokenizer: Any,
    template: str,
    *,
    fills: Mapping[str, Fill],
    chat: bool = False,
    system: str | None = None,
    max_length: int | None = None,
    truncate: Truncate | None = None,
    add_special_tokens: bool = True,
    n_ctx: int | None = None,
) -> Prompt:
    """Put ``fills`` into ``template``, tokenise, and find the tokens of every fill.

    Parameters
    ----------
    template
        Text with ``{name}`` places; literal braces are doubled.
    fills
        What goes into each place: text, a ``Template`` with regions of its own, or a list of those with one for each
        time the name occurs. Fills are literal, braces in them mean nothing.
    chat
        Send the text as a user message through the tokenizer's chat template, ready for the answer. The template
        writes its own special tokens, so ``add_special_tokens`` has no effect.
    system
        System message of the chat; its tokens become the region ``"system"``.
    max_length
        Most tokens, those that the tokenizer adds included.
    truncate
        What to cut when the text is longer: the first, last or middle tokens, of the user message under ``chat``.
        Only tokens outside the regions can go. Without it a longer text is an error.
    n_ctx
        Context length of the model: a prompt is never longer.

    Raises
    ------
    PromptError
        If the template and the fills do not match, a region would be cut or has no token, or the prompt is too long.
    """
    text, spans = render(template, fills)
    body: Span | None = None
    if chat:
        text, spans, body = _in_chat(tokenizer, text, spans, system)
    elif system is not None:
        raise PromptError("system= needs chat=True: without a chat template there is no system message.")
    encoded = encode(tokenizer, text, add_special_tokens=add_special_tokens and not chat)
    regions = covering(text, encoded.offsets, spans)
    limits = [n for n in (max_length, n_ctx) if n is not None]
    if truncate is not None:
        if truncate not in ("left", "right", "middle"):
            raise PromptError(f"truncate={truncate!r} is none of 'left', 'right', 'middle'.")
        if not limits:
            raise PromptError("truncate= needs max_length=, the most tokens to keep.")
        if len(encoded.ids) > min(limits):
            text, encoded, regions = cut_tokens(text, encoded, regions, body, len(encoded.ids) - min(limits), truncate)
    elif max_length is not None and len(encoded.ids) > max_length:
        raise PromptError(
            f"The prompt has {len(encoded.ids)} tokens, max_length is {max_length}. Shorten a fill, or let "
            "truncate='left', 'right' or 'middle' cut the text between the regions."
        )
    _check_context(len(encoded.ids), n_ctx)
    return _assemble(tokenizer, text, encoded, regions)


def partition(prompt: Prompt, names: Sequence[str]) -> list[tuple[int, ...]]:
    """Split all tokens of a prompt into disjoint regions.

    Returns the positions of each name, in order, and last those of the rest; ``"rest"`` may be named to come
    elsewhere. The rest may be empty.

    Raises
    ------
    PromptError
        If two of the regions share tokens.
    """
    owner: dict[int, str] = {}
    for name in names:
        if name == "rest":
            continue
        for position in prompt.positions(name):
            if (other := owner.setdefault(position, name)) != name:
                raise PromptError(
                    f"Regions {other!r} and {name!r} share token {position} ({prompt.pieces[position]!r}), so they do "
                    "not partition the prompt. Leave one out, or ask for their masses one by one."
                )
    rest = tuple(i for i in range(len(prompt)) if i not in owner)
    ordered = list(names) if "rest" in names else [*names, "rest"]
    return [rest if name == "rest" else prompt.positions(name) for name in ordered]


def _in_chat(
    tokenizer: Any, message: str, spans: Mapping[str, list[Span]], system: str | None
) -> tuple[str, dict[str, list[Span]], Span]:
    """Render the chat and move the message's spans to where the message went."""
    text, (start, end), trimmed, system_span = render_chat(tokenizer, message, system)
    moved: dict[str, list[Span]] = {}
    for name, pairs in spans.items():
        clipped = [(max(a - trimmed + start, start), min(b - trimmed + start, end)) for a, b in pairs]
        moved[name] = [(a, b) for a, b in clipped if a < b]
        if not moved[name]:
            raise PromptError(f"The chat template trims region {name!r} away: it is white space at the message's edge.")
    if system_span is not None and system_span[0] < system_span[1]:
        moved["system"] = [system_span]
    return text, moved, (start, end)


def _assemble(tokenizer: Any, text: str, encoded: Encoded, regions: Mapping[str, tuple[int, ...]]) -> Prompt:
    named = {"bos": (0,), **regions}
    return Prompt(encoded.ids, text, named, encoded.offsets, pieces(tokenizer, text, encoded))


def _check_context(length: int, n_ctx: int | None) -> None:
    if n_ctx is not None and length > n_ctx:
        raise PromptError(
            f"The prompt has {length} tokens, the model's context holds {n_ctx}. Shorten it, or give truncate=."
        )


def _as_spans(name: str, value: Span | Iterable[Span], text: str) -> list[Span]:
    check_name(name)
    items: list[Any] = list(value)
    spans = [(items[0], items[1])] if len(items) == 2 and all(isinstance(i, int) for i in items) else items
    if not spans:
        raise PromptError(f"Region {name!r} has no characters.")
    for start, end in spans:
        if not 0 <= start < end <= len(text):
            raise PromptError(f"Region {name!r}: [{start}, {end}) is no span of characters in a text of {len(text)}.")
    return [(int(start), int(end)) for start, end in spans]


def _checked(regions: Mapping[str, Iterable[int]], length: int) -> dict[str, tuple[int, ...]]:
    out: dict[str, tuple[int, ...]] = {}
    for name, positions in regions.items():
        check_name(name)
        found = [int(i) for i in positions]
        if not found:
            raise PromptError(f"Region {name!r} holds no token.")
        if bad := [i for i in found if not -length <= i < length]:
            raise PromptError(f"Region {name!r}: token position {bad[0]} is outside the prompt of {length} tokens.")
        out[name] = tuple(sorted({i % length for i in found}))
    return out
