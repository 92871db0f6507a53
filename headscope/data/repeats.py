"""Repeated random tokens: what a head does when the only thing to know is what came before."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from headscope.data.dataset import DataSet, positive
from headscope.errors import DataError

MARKUP = re.compile(r"<[^<>]*>|\[(?:unused|PAD|UNK|CLS|SEP|MASK)\d*\]", re.IGNORECASE)
"""Vocabulary entries that stand for control, unused places or single bytes rather than text."""


@dataclass(frozen=True)
class RepeatSample:
    """A block of random tokens, several times, behind the token that starts a text.

    Attributes
    ----------
    tokens
        The block.
    times
        How often it comes.
    start
        Id of the token that starts a text, or None if the model knows none.
    """

    id: str
    source: str
    tokens: tuple[int, ...]
    times: int
    start: int | None
    factors: dict[str, str | int | float] = field(hash=False)

    kind: ClassVar[str] = "repeats"

    @property
    def block(self) -> int:
        """Length of the block."""
        return len(self.tokens)

    @property
    def offset(self) -> int:
        """Position of the first token of the first block: copy c of token i is at ``offset + c * block + i``."""
        return 0 if self.start is None else 1

    @property
    def ids(self) -> tuple[int, ...]:
        """All token ids."""
        return (() if self.start is None else (self.start,)) + self.tokens * self.times

    def prompt(self, model: Any) -> Any:
        """Return the prompt, with regions ``"first"``, the first block, and ``"copies"``, the others."""
        end = self.offset + self.block
        regions = {"first": range(self.offset, end), "copies": range(end, len(self.ids))}
        return model.prompt_from_ids(self.ids, regions)

    def forward(self, model: Any, capture: Sequence[Any]) -> Any:
        """Run the model once over the tokens."""
        return model.run(self.prompt(model), capture=list(capture), logits=False)


def repeats(
    model: Any, n: int = 24, length: int | None = None, seed: int = 0, *, times: int = 2
) -> DataSet[RepeatSample]:
    """Make blocks of random tokens, each repeated.

    Tokens are drawn uniformly from the vocabulary without special tokens, and none comes twice in a block where the
    vocabulary is large enough: every earlier occurrence of a token is then in an earlier copy.

    Parameters
    ----------
    n
        Number of blocks, which are also the clusters of the bootstrap.
    length
        Tokens of a block; by default 128, or what the context allows.
    times
        Copies of the block (RazorAttention: 4 of 2,500 tokens).

    Raises
    ------
    DataError
        If the copies do not fit into the context.
    """
    positive("n", n)
    if positive("times", times) < 2:
        raise DataError("times=1 repeats nothing: give at least 2.")
    start, room = _start(model), _context(model)
    offset = 0 if start is None else 1
    if length is None:
        length = 128 if room is None else min(128, (room - offset) // times)
    if room is not None and offset + positive("length", length) * times > room:
        raise DataError(
            f"{times} blocks of {length} tokens do not fit into the context of {room}. "
            f"Give length={(room - offset) // times} or less."
        )
    words = vocabulary(model)
    samples = []
    for i in range(n):
        rng = Random(f"repeats/{seed}/{i}")
        block = rng.sample(words, length) if len(words) >= length else rng.choices(words, k=length)
        name = f"repeat-{seed}-{i:04d}"
        samples.append(RepeatSample(name, name, tuple(block), times, start, {"length": length, "times": times}))
    return DataSet("repeats", samples, {"n": n, "length": length, "times": times, "seed": seed})


def vocabulary(model: Any) -> list[int]:
    """Return the ids of all tokens that stand for text, in order.

    Raises
    ------
    DataError
        If there are fewer than two.
    """
    tokenizer, size = model.tokenizer, int(model.spec.vocab_size)
    if tokenizer is None:
        special = {_start(model), getattr(model.hf.config, "eos_token_id", None)}
        ids = [i for i in range(size) if i not in special]
    else:
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        names = tokenizer.get_vocab()
        ids = sorted(i for name, i in names.items() if i < size and i not in special and not MARKUP.fullmatch(name))
    if len(ids) < 2:
        raise DataError("The model's vocabulary has fewer than two tokens that are not special: nothing to repeat.")
    return ids


def _start(model: Any) -> int | None:
    """Id of the token that starts a text."""
    tokenizer = model.tokenizer
    holder = model.hf.config if tokenizer is None else tokenizer
    for name in ("bos_token_id", "cls_token_id"):
        found = getattr(holder, name, None)
        if isinstance(found, int) and found < int(model.spec.vocab_size):
            return found
    return None


def _context(model: Any) -> int | None:
    return None if model.spec.n_ctx is None else int(model.spec.n_ctx)
