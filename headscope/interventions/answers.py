"""What a model answers under edits, item by item: candidates forced and text written, each prompt read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headscope.errors import ModelError, WeightsError
from headscope.interventions.reading import Reading, Stop, Written, write

if TYPE_CHECKING:
    from headscope.interventions.training import Example

ROWS = 32
"""Most answers that are decoded at once: each holds a copy of its prompt's keys and values."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Forced:
    """What a model gives each item's candidates, the right one first, for N items of at most K candidates.

    Parameters
    ----------
    totals
        Log-probability of each candidate over the whole vocabulary, in nats (N, K); NaN where an item has fewer.
    greedy
        Whether greedy decoding would begin with the candidate (N, K).
    entropy
        Of the first answer token over the vocabulary, in nats (N,).
    idle
        Batches in which an edit looked for keys and found none, and batches in all.
    """

    totals: Floats
    greedy: NDArray[np.bool_]
    entropy: Floats
    idle: tuple[int, int] = (0, 0)

    @property
    def chosen(self) -> NDArray[np.int64]:
        """The candidate that a label-constrained choice takes (N,); a tie with the right one goes against it."""
        others = np.where(np.isnan(self.totals[:, 1:]), -np.inf, self.totals[:, 1:])
        if not others.shape[1]:
            return np.zeros(len(self.totals), np.int64)
        best = others.argmax(1)
        lost = others[np.arange(len(best)), best] >= self.totals[:, 0]
        return np.where(lost & ~self.alone, best + 1, 0)

    @property
    def alone(self) -> NDArray[np.bool_]:
        """Whether the right answer has no other candidate beside it (N,)."""
        return np.asarray(np.isnan(self.totals[:, 1:]).all(axis=1), dtype=bool)

    @property
    def constrained(self) -> Floats:
        """1 where the label-constrained choice is right (N,); NaN where there is nothing to choose from."""
        return np.where(self.alone, np.nan, (self.chosen == 0).astype(np.float64))

    @property
    def share(self) -> Floats:
        """Log-probability of the right answer among the candidates (N,), in nats; alone, over the vocabulary."""
        with np.errstate(invalid="ignore"):
            among = self.totals[:, 0] - np.logaddexp.reduce(np.where(np.isnan(self.totals), -np.inf, self.totals), 1)
        return np.where(self.alone, self.totals[:, 0], among)


Told = Callable[[int], None]
"""Called with the number of items of each finished batch."""


def answer(
    model: Any,
    data: Sequence[Example],
    *,
    batch: int = 8,
    stops: Sequence[Stop] | None = None,
    limit: int = 0,
    told: Told | None = None,
) -> tuple[Forced, list[Written] | None]:
    """Force every candidate of every item under the edits in force and, with ``stops``, write an answer to each.

    Items are read in batches of like length. The rounding of a number may depend on its batch, and so on ``batch``.

    Parameters
    ----------
    data
        Items.
    batch
        Prompts read at once.
    stops, limit
        When the written answer to each item is over, and its most tokens.

    Raises
    ------
    ModelError
        If a right answer's log-probability is not finite.
    """
    width = max(len(candidates(item)) for item in data)
    totals, greedy = np.full((len(data), width), np.nan), np.zeros((len(data), width), dtype=bool)
    entropy = np.full(len(data), np.nan)
    texts: dict[int, Written] = {}
    idle = 0
    read = _each if model.hf.config.is_encoder_decoder else _batch
    order = sorted(range(len(data)), key=lambda i: (_longest(data[i]) > 1, len(data[i].prompt), i))
    starts = range(0, len(data), batch)
    for start in starts:
        part = order[start : start + batch]
        chosen = [stops[i] for i in part] if stops is not None else None
        try:
            found, written, nothing = read(model, [data[i] for i in part], chosen, limit)
        except WeightsError as error:
            names = ", ".join(repr(data[i].id) for i in part[:3])
            raise ModelError(f"{model.name} gives logits that are not finite near items {names}: {error}") from error
        idle += nothing
        for i, (sums, hits, spread) in zip(part, found, strict=True):
            totals[i, : len(sums)], greedy[i, : len(hits)], entropy[i] = sums, hits, spread
        texts |= dict(zip(part, written, strict=True)) if written is not None else {}
        if told is not None:
            told(len(part))
    bad = ~np.isfinite(totals[:, 0])
    if bad.any():
        raise ModelError(
            f"{model.name} gives item {data[int(bad.argmax())].id!r} a log-probability that is not finite: "
            "its logits are NaN or infinite there."
        )
    forced = Forced(totals, greedy, entropy, (idle, len(starts)))
    return forced, [texts[i] for i in range(len(data))] if stops is not None else None


def candidates(item: Example) -> tuple[tuple[int, ...], ...]:
    """Return the token ids of the right answer, then of the others."""
    return (item.answer, *item.wrong)


One = tuple[list[float], list[bool], float]
"""One item's sums, greedy hits, and entropy."""


def _batch(
    model: Any, items: Sequence[Example], stops: Sequence[Stop] | None, limit: int
) -> tuple[list[One], list[Written] | None, bool]:
    reading = Reading(model, [item.prompt for item in items], max(limit, *map(_longest, items)))
    first = _log(reading.logits)
    sums = [[float(row[ids[0]]) for ids in candidates(item)] for item, row in zip(items, first, strict=True)]
    best = first.argmax(-1).tolist()
    hits = [[top == ids[0] for ids in candidates(item)] for item, top in zip(items, best, strict=True)]
    most = max(len(candidates(item)) for item in items) if max(map(_longest, items)) > 1 else 0
    size = max(1, ROWS // len(items)) if reading.repeatable else 1
    for begin in range(0, most, size):
        _extend(reading, items, range(begin, min(begin + size, most)), sums, hits)
    entropy = _entropy(first)
    written = write(reading, limit, stops) if stops is not None else None
    return list(zip(sums, hits, entropy, strict=True)), written, reading.idle


def _extend(
    reading: Reading, items: Sequence[Example], which: range, sums: list[list[float]], hits: list[list[bool]]
) -> None:
    """Add what the later tokens of some candidates get, all of them decoded side by side."""
    # Items with fewer candidates take part with one of their own, so that rows stay in order.
    rows = [(i, k) for i in range(len(items)) for k in which]
    answers = [(candidates(items[i]) + (items[i].answer,) * (which.stop))[k] for i, k in rows]
    longest = max(map(len, answers))
    if longest < 2:
        return
    branch = reading.branch(len(which))
    for at in range(1, longest):
        logs = _log(branch.step([ids[min(at, len(ids)) - 1] for ids in answers]))
        best = logs.argmax(-1).tolist()
        for row, ((i, k), ids) in enumerate(zip(rows, answers, strict=True)):
            if at < len(ids) and k < len(sums[i]):
                sums[i][k] += float(logs[row, ids[at]])
                hits[i][k] &= best[row] == ids[at]


def _each(
    model: Any, items: Sequence[Example], stops: Sequence[Stop] | None, limit: int
) -> tuple[list[One], list[Written] | None, bool]:
    """Answer one item at a time by ``model.trace``: encoder-decoders."""
    found: list[One] = []
    written: list[Written] = []
    for n, item in enumerate(items):
        steps = [
            (_log(model.trace(item.prompt, teacher=ids).logits[0].float()), torch.tensor(ids))
            for ids in candidates(item)
        ]
        sums = [float(rows.gather(-1, ids[:, None]).sum()) for rows, ids in steps]
        hits = [bool((rows.argmax(-1) == ids).all()) for rows, ids in steps]
        found.append((sums, hits, _entropy(steps[0][0][:1])[0]))
        if stops is not None:
            from headscope.models.generation import end_tokens

            said = model.trace(item.prompt, max_new_tokens=limit, stop=stops[n])
            last = bool(said.tokens) and said.tokens[-1] in end_tokens(model)
            ended = last or bool(stops[n](said.text))
            written.append(Written(said.text, len(said.tokens) - last, ended))
    return found, written if stops is not None else None, False


def _log(logits: Tensor) -> Tensor:
    return logits.cpu().double().log_softmax(-1)


def _entropy(logs: Tensor) -> list[float]:
    """Entropy in nats of rows of log-probabilities; impossible tokens, as masked vocabularies have, count 0."""
    return [float(x) for x in torch.special.entr(logs.exp()).sum(-1)]


def _longest(item: Example) -> int:
    return max(map(len, candidates(item)))
