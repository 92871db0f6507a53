"""From single answers to tables: means, paired gains and shifts of labels, with intervals that resample sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headscope.probes.statistics import DRAWS, bootstrap, cluster, expanded_tail

if TYPE_CHECKING:
    from headscope.interventions.measurements import Answered
    from headscope.interventions.training import Example

Floats = NDArray[np.float64]

MEASURES = (
    "accuracy",
    "valid",
    "accuracy_among_valid",
    "constrained",
    "logprob",
    "logprob_among",
    "entropy",
    "length",
)
"""What is measured of every item.

``accuracy``: whether the written answer is right. ``valid``: whether it is an answer at all. ``accuracy_among_valid``:
accuracy of the valid answers alone. ``constrained``: whether the right candidate is the likeliest one, so that every
answer is valid. ``logprob``: of the right answer over the vocabulary, in nats; ``logprob_among``: among the candidates.
``entropy``: of the first answer token, in nats. ``length``: tokens of the written answer.
"""
NONE = "(none)"
"""The label of a text that names no candidate."""


@dataclass(frozen=True)
class Judged:
    """One variant's answers with their verdicts.

    Parameters
    ----------
    answered
        What it answered.
    items, data
        The task's items, and the same as tokens.
    names
        Text of each item's candidates, the right one first.
    """

    answered: Answered
    items: Sequence[Any]
    data: Sequence[Example]
    names: Sequence[Sequence[str]]

    @cached_property
    def verdicts(self) -> list[Any] | None:
        """The task's verdict on each written answer; None where none was written."""
        written = self.answered.written
        if written is None:
            return None
        return [item.verdict(said.text) for item, said in zip(self.items, written, strict=True)]

    @cached_property
    def values(self) -> dict[str, Floats]:
        """Each of ``MEASURES`` by item (N,); NaN where an item does not count."""
        forced, nothing = self.answered.forced, np.full(len(self.data), np.nan)
        found = dict.fromkeys(MEASURES, nothing)
        found |= {"constrained": forced.constrained, "logprob": forced.totals[:, 0], "entropy": forced.entropy}
        found["logprob_among"] = np.where(forced.alone, np.nan, forced.share)
        if self.verdicts is not None and self.answered.written is not None:
            valid = np.array([float(verdict.valid) for verdict in self.verdicts])
            right = np.array([float(verdict.correct) for verdict in self.verdicts])
            found |= {"accuracy": right, "valid": valid, "accuracy_among_valid": np.where(valid > 0, right, np.nan)}
            found["length"] = np.array([float(said.length) for said in self.answered.written])
        return found

    @cached_property
    def forced_labels(self) -> list[str | None]:
        """The candidate that a label-constrained choice takes; None where there is nothing to choose from."""
        forced = self.answered.forced
        pairs = zip(self.names, forced.chosen, forced.alone, strict=True)
        return [None if alone else names[chosen] for names, chosen, alone in pairs]

    @property
    def cut_off(self) -> float:
        """Share of the written answers that did not end by themselves; 0 where none was written."""
        written = self.answered.written
        return 0.0 if not written else sum(not said.ended for said in written) / len(written)

    @cached_property
    def written_labels(self) -> list[str] | None:
        """The candidate that each text gives, or ``NONE``; None where nothing was written."""
        return None if self.verdicts is None else [verdict.label or NONE for verdict in self.verdicts]


@dataclass(frozen=True)
class Gain:
    """A mean with its interval."""

    mean: float
    low: float
    high: float

    @property
    def up(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0

    @property
    def down(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.high < 0


def means(found: Judged, sources: Sequence[str], seed: int) -> dict[str, float]:
    """Return every measure's mean and interval, as ``measure``, ``measure_low`` and ``measure_high``."""
    values = np.column_stack([found.values[name] for name in MEASURES])
    interval = bootstrap(values, sources, seed=seed)
    out: dict[str, float] = {}
    for i, name in enumerate(MEASURES):
        out |= {name: float(interval.mean[i]), f"{name}_low": float(interval.low[i])}
        out[f"{name}_high"] = float(interval.high[i])
    return out


def gains(found: Judged, base: Judged, sources: Sequence[str], seed: int) -> dict[str, Gain]:
    """Return every measure's paired difference to the base.

    Which answers are valid differs from method to method: the gain among valid answers is the difference of two
    accuracies, over the same resampled sources.
    """
    values = np.column_stack([found.values[name] - base.values[name] for name in MEASURES])
    interval = bootstrap(values, sources, seed=seed)
    out = {
        name: Gain(float(interval.mean[i]), float(interval.low[i]), float(interval.high[i]))
        for i, name in enumerate(MEASURES)
    }
    name = "accuracy_among_valid"
    out[name] = difference_of_means(found.values[name], base.values[name], sources, seed)
    return out


def columns(gains: Mapping[str, Gain]) -> dict[str, float]:
    """Return gains as columns: ``measure_gain``, ``measure_gain_low`` and ``measure_gain_high``."""
    out: dict[str, float] = {}
    for name, gain in gains.items():
        out |= {f"{name}_gain": gain.mean, f"{name}_gain_low": gain.low, f"{name}_gain_high": gain.high}
    return out


def difference_of_means(a: Floats, b: Floats, sources: Sequence[str], seed: int) -> Gain:
    """Mean of a minus mean of b, each over the items that count for it (not NaN), with a bootstrap interval."""
    groups = cluster(np.column_stack([a, b]), sources)
    counts = groups.counts.sum(0)
    if not counts.all():
        return Gain(np.nan, np.nan, np.nan)
    mean = float(groups.mean[0] - groups.mean[1])
    size = len(groups.names)
    if size < 2:
        return Gain(mean, np.nan, np.nan)
    weights = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=DRAWS).astype(np.float64)
    drawn, seen = weights @ groups.sums, weights @ groups.counts
    drawn = drawn[(seen > 0).all(1)] / seen[(seen > 0).all(1)]
    tail = expanded_tail(size)
    low, high = np.quantile(drawn[:, 0] - drawn[:, 1], [tail, 1 - tail])
    return Gain(mean, min(float(low), mean), max(float(high), mean))


def p_value(gain: float, others: Sequence[float]) -> float:
    """Share of controls that gain at least as much, with the method itself counted among them; NaN without any."""
    known = [other for other in others if other == other]
    if not known or gain != gain:
        return float("nan")
    return (1 + sum(other >= gain - 1e-12 for other in known)) / (1 + len(known))


def shares(labels: Sequence[str | None]) -> dict[str, float]:
    """Return each label's share."""
    counts = Counter(label for label in labels if label is not None)
    total = sum(counts.values())
    return {label: count / total for label, count in counts.items()}


def total_variation(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Half the summed difference of two distributions: the share of answers that would have to change; NaN if empty."""
    if not a or not b:
        return float("nan")
    return 0.5 * sum(abs(a.get(name, 0.0) - b.get(name, 0.0)) for name in {*a, *b})


def shifts(found: Judged, base: Judged) -> dict[str, float]:
    """Return how far the labels that a variant gives are distributed from the right ones, and from the base's."""
    gold = shares([item.gold for item in found.items])
    forced, written = shares(found.forced_labels), shares(found.written_labels or [])
    return {
        "prior_constrained_gold": total_variation(forced, gold),
        "prior_constrained_base": total_variation(forced, shares(base.forced_labels)),
        "prior_written_gold": total_variation(written, gold),
        "prior_written_base": total_variation(written, shares(base.written_labels or [])),
    }


def label_rows(title: str, found: Judged, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row for each label: its share among right answers and answers given, and how often it is found."""
    gold = [item.gold for item in found.items]
    written = found.written_labels
    forced_share, written_share, gold_share = shares(found.forced_labels), shares(written or []), shares(gold)
    rows = []
    for label in (*labels, NONE):
        here = [i for i, right in enumerate(gold) if right == label]
        rows.append(
            {
                "method": title,
                "label": label,
                "gold": gold_share.get(label, 0.0),
                "constrained": forced_share.get(label, 0.0),
                "written": written_share.get(label, 0.0) if written is not None else np.nan,
                "constrained_recall": np.mean([found.forced_labels[i] == label for i in here]) if here else np.nan,
                "written_recall": (
                    np.mean([written[i] == label for i in here]) if here and written is not None else np.nan
                ),
            }
        )
    return rows


def item_rows(title: str, kind: str, found: Judged) -> list[dict[str, Any]]:
    """Return one row for each item."""
    rows = []
    for i, item in enumerate(found.items):
        row: dict[str, Any] = {
            "method": title,
            "kind": kind,
            "id": str(item.id),
            "source": str(item.source),
            "gold": str(item.gold),
            "constrained_label": found.forced_labels[i] or "",
            **{name: float(found.values[name][i]) for name in ("constrained", "logprob", "logprob_among", "entropy")},
        }
        if found.verdicts is not None and found.answered.written is not None:
            said, verdict = found.answered.written[i], found.verdicts[i]
            row |= {"text": said.text, "label": verdict.label or "", "valid": bool(verdict.valid)}
            row |= {"correct": bool(verdict.correct), "length": said.length, "ended": said.ended}
        rows.append(row)
    return rows
