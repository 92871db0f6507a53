"""Needles in haystacks: a fact is hidden in a long text and asked for at its end.

The grid is sources × lengths × depths. Trials of one source are not independent, so there are many sources, and a
sample knows its own (Wu et al. 2024, arXiv 2404.15574, used three).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import lcm
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from headscope.data.answers import Fact, fact, sources, telling, words
from headscope.data.dataset import DataSet, needs_tokenizer, positive
from headscope.data.haystack import FolderText, GeneratedProse, Haystack, fill, split_at
from headscope.errors import DataError, PromptError

CHAT = (
    "Read the text and answer the question after it.\n\n{haystack}{needle}{haystack}\n\n"
    "Question: {question}\nAnswer in a few words, taken from the text."
)
BASE = (
    "A visitor came to the door with a basket of pears.\n\n{haystack}{needle}{haystack}\n\n"
    "Question: What did the visitor at the door have?\nAnswer: The visitor had a basket of pears.\n\n"
    "Question: {question}\nAnswer:"
)
"""For models that were not trained to answer, one answer is shown: without it few small ones say anything."""
PREAMBLE = 24
"""New tokens that a model may spend beside the answer's own."""
BUDGET = 2048
"""Longest prompt by default: what ranks a small model within minutes on two cores."""
LEAST_HAYSTACK = 32
CLOSE = 6
"""A prompt this many tokens short of its length is long enough."""


@dataclass(frozen=True)
class NeedleSample:
    """One needle at one depth of one haystack.

    Attributes
    ----------
    before, after
        The haystack on both sides of the needle.
    needle, question, answer
        The fact, see ``Fact``.
    chat
        Whether it is asked through the chat template.
    max_new_tokens
        Most tokens that the model may answer with.
    """

    id: str
    source: str
    before: str
    needle: str
    after: str
    question: str
    answer: str
    chat: bool
    max_new_tokens: int
    factors: dict[str, str | int | float] = field(hash=False)

    kind: ClassVar[str] = "needles"

    def prompt(self, model: Any) -> Any:
        """Return the prompt, with regions ``"needle"``, ``"answer"`` inside it, ``"question"`` and ``"haystack"``."""
        prompt = model.prompt(
            CHAT if self.chat else BASE,
            chat=self.chat,
            haystack=[self.before, self.after],
            needle=self.needle,
            question=self.question,
        )
        return prompt.with_regions({"answer": prompt.find(self.answer, within="needle")})

    def forward(self, model: Any, capture: Sequence[Any]) -> Any:
        """Let the model answer, and capture the attention behind each token of the answer."""
        return model.trace(
            self.prompt(model), capture=list(capture), max_new_tokens=self.max_new_tokens, stop=_line_is_over
        )

    def answered(self, trace: Any) -> bool:
        """Whether the model's text holds more than half of the answer's words."""
        return recall(str(trace.text), self.answer) > 0.5


def recall(text: str, answer: str) -> float:
    """ROUGE-1 recall: share of the answer's words (case ignored, with multiplicity) that ``text`` holds."""
    wanted, found = Counter(words(answer)), Counter(words(text))
    return sum((wanted & found).values()) / max(1, sum(wanted.values()))


def _line_is_over(text: str) -> bool:
    return "\n" in text.lstrip()


def needles(
    model: Any,
    n: int = 60,
    seed: int = 0,
    *,
    lengths: Sequence[int] | None = None,
    depths: Sequence[float] | None = None,
    haystack: str | Path | None = None,
    chat: bool | None = None,
) -> DataSet[NeedleSample]:
    """Hide facts in haystacks.

    Parameters
    ----------
    n
        Number of samples. They go round the sources, and round lengths × depths so that after any number of
        samples all lengths, and all depths, have been used equally often (by at most one).
    lengths
        Tokens of the whole prompt; by default five, from 256 to what the context allows or 2,048.
    depths
        Places of the needle, from 0, the start of the haystack, to 1, its end; by default ten.
    haystack
        Folder of ``.txt`` and ``.md`` files, or one file; by default generated prose.
    chat
        Ask through the chat template; by default where the tokenizer has one.

    Raises
    ------
    DataError
        If a length leaves no room for a haystack or passes the context, or the folder's text is too short.
    """
    tokenizer = needs_tokenizer(model, "needles")
    positive("n", n)
    if chat is None:
        chat = getattr(tokenizer, "chat_template", None) is not None
    stack: Haystack = GeneratedProse() if haystack is None else FolderText(haystack)
    facts = _facts(n, seed)
    frames = [_frame(model, found, chat) for found in facts]
    rooms = [_room(tokenizer, found) for found in facts]
    room = None if model.spec.n_ctx is None else int(model.spec.n_ctx) - max(rooms) + 1
    least = max(frames) + LEAST_HAYSTACK
    grid = _lengths(lengths, least, room)
    places = _depths(depths)
    cells = _cells(n, grid, places, Random(f"needles/{seed}/grid"))
    samples = [
        _sample(model, i, facts[i], stack, cells[i], frames[i], rooms[i], chat, f"needles/{seed}/{i}") for i in range(n)
    ]
    parameters = {
        "n": n,
        "seed": seed,
        "lengths": grid,
        "depths": places,
        "haystack": stack.name,
        "chat": chat,
        "sources": len({found.source for found in facts}),
    }
    return DataSet("needles", samples, parameters)


def _facts(n: int, seed: int) -> list[Fact]:
    """Draw n facts; every source once, in random order, before any comes again."""
    rng = Random(f"needles/{seed}/facts")
    names = sources()
    out: list[Fact] = []
    while len(out) < n:
        out.extend(fact(name, rng) for name in rng.sample(names, len(names)))
    return out[:n]


def _cells(n: int, lengths: list[int], depths: list[float], rng: Random) -> list[tuple[int, float]]:
    """Walk the grid along its diagonals: balanced in both at any n, every cell once in a whole round."""
    rows, columns = rng.sample(lengths, len(lengths)), rng.sample(depths, len(depths))
    round_trip = lcm(len(rows), len(columns))
    return [(rows[i % len(rows)], columns[(i + i // round_trip) % len(columns)]) for i in range(n)]


def _frame(model: Any, found: Fact, chat: bool) -> int:
    """Tokens of a prompt without haystack."""
    template = (CHAT if chat else BASE).replace("{haystack}", "")
    try:
        return len(model.prompt(template, chat=chat, needle=found.needle, question=found.question))
    except PromptError as error:
        raise DataError(f"A needle and its question do not fit this model, even without a haystack: {error}") from error


def _room(tokenizer: Any, found: Fact) -> int:
    return len(tokenizer(f" {found.answer}", add_special_tokens=False)["input_ids"]) + PREAMBLE


def _sample(
    model: Any,
    index: int,
    found: Fact,
    stack: Haystack,
    cell: tuple[int, float],
    frame: int,
    room: int,
    chat: bool,
    seed: str,
) -> NeedleSample:
    length, depth = cell
    budget, best, shortest = length - frame, None, length
    # Tokens of the parts do not add up exactly to those of the whole: correct the budget by what came out.
    for attempt in range(8):
        pieces, sizes = fill(stack, model.tokenizer, Random(seed), budget, telling(found.answer))
        if not pieces:
            break
        split = split_at(sizes, depth)
        sample = NeedleSample(
            id=f"needle-{index:04d}-{found.source}-{length}-{depth:.2f}",
            source=found.source,
            before="".join(pieces[:split]),
            needle=found.needle,
            after=" " + "".join(pieces[split:]).rstrip() if pieces[split:] else "",
            question=found.question,
            answer=found.answer,
            chat=chat,
            max_new_tokens=room,
            factors={"length": length, "depth": depth},
        )
        short = length - len(sample.prompt(model))
        if 0 <= short < shortest:
            best, shortest = sample, short
        if 0 <= short <= CLOSE:
            break
        budget = sum(sizes) + short - (attempt if short < 0 else 0)
    if best is None:
        raise DataError(
            f"No sentence of {stack.name} fits between a prompt of {frame} tokens and the length of {length}. "
            "Ask for longer contexts."
        )
    return best


def _lengths(lengths: Sequence[int] | None, least: int, room: int | None) -> list[int]:
    """Check the lengths, or choose them by the model's context."""
    if room is not None and room < least:
        raise DataError(
            f"The model's context leaves {max(0, room)} tokens for a prompt; the shortest with a needle has {least}."
        )
    if lengths is None:
        top = BUDGET if room is None else min(BUDGET, room)
        bottom = min(max(256, least), top)
        return sorted({round(bottom + (top - bottom) * step / 4) for step in range(5)})
    grid = list(dict.fromkeys(positive("lengths", length) for length in lengths))
    if not grid:
        raise DataError("lengths=[] leaves no prompt to make. Leave it out to size them to the model.")
    if min(grid) < least:
        raise DataError(f"lengths: {min(grid)} tokens are too few, question and needle alone take up to {least}.")
    if room is not None and max(grid) > room:
        raise DataError(f"lengths: {max(grid)} tokens leave no room for an answer in the context; at most {room} do.")
    return grid


def _depths(depths: Sequence[float] | None) -> list[float]:
    if depths is None:
        return [round(step / 9, 3) for step in range(10)]
    places = list(dict.fromkeys(float(depth) for depth in depths))
    if not places or not all(0 <= depth <= 1 for depth in places):
        raise DataError(f"depths={list(depths)}: give numbers from 0, the start of the haystack, to 1, its end.")
    return places
