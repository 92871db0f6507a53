"""What the numbers of an evaluation say, in words: gains that are there, that are not, and that are something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headscope.interventions.summary import NONE, Gain, Judged, shares
from headscope.report.numbers import number

WORDS = {
    "accuracy": "accuracy",
    "constrained": "label-constrained accuracy",
    "logprob": "log-probability of the right answer",
}
"""What a gain can be in."""
COLLAPSED, MORE = 0.9, 0.1
"""A label with at least this share of the answers, and so much more than in the base, leaves no room for others."""


@dataclass(frozen=True)
class Found:
    """All that is said of one method.

    Parameters
    ----------
    name
        Of the method.
    primary
        The measure that counts, a key of ``WORDS``.
    row, base
        Rows of the table.
    gains
        By measure.
    drift
        Rise of the loss on neutral text, nats per token; None where it was not measured.
    """

    name: str
    primary: str
    row: Mapping[str, Any]
    base: Mapping[str, Any]
    gains: Mapping[str, Gain]
    drift: Gain | None = None


def sentences(found: Found) -> list[str]:
    """Return everything that is said of a method, its gain first."""
    return [headline(found), *remarks(found)]


def headline(found: Found) -> str:
    """Say in one sentence whether there is a gain, and through what."""
    gain = found.gains[found.primary]
    what, size = WORDS[found.primary], _size(gain)
    if gain.mean != gain.mean:
        return f"{found.name}: {what} cannot be measured."
    if gain.low != gain.low:
        return f"{found.name}: {what} differs by {gain.mean:+.3f}, with no interval: one source says nothing of others."
    if gain.down:
        return f"{found.name}: {what} falls, {size}."
    if not gain.up:
        return f"{found.name}: no gain in {what}: {size} holds 0."
    if found.primary == "accuracy" and only_validity(found.row):
        return f"{found.name}: accuracy rises, {size}, only because more answers are valid. {_validity(found)}"
    return f"{found.name}: {what} rises, {size}."


def only_validity(row: Mapping[Any, Any]) -> bool:
    """Whether accuracy rises with validity, while neither accuracy among valid answers nor constrained accuracy does.

    ``row`` is a row of the table.
    """
    up = {name: row[f"{name}_gain_low"] > 0 for name in ("accuracy", "valid", "accuracy_among_valid", "constrained")}
    return bool(up["accuracy"] and up["valid"] and not (up["accuracy_among_valid"] or up["constrained"]))


def _validity(found: Found) -> str:
    row, base, gains = found.row, found.base, found.gains
    text = (
        f"Valid answers go from {base['valid']:.3f} to {row['valid']:.3f}; among them accuracy goes from "
        f"{_number(base['accuracy_among_valid'])} to {_number(row['accuracy_among_valid'])} "
        f"({_size(gains['accuracy_among_valid'])})"
    )
    if row["constrained"] == row["constrained"]:
        text += (
            f", and constrained to the labels from {base['constrained']:.3f} to {row['constrained']:.3f} "
            f"({_size(gains['constrained'])})"
        )
    return f"{text}."


def remarks(found: Found) -> list[str]:
    """Say what else a reader must know of a method's gain."""
    said = []
    gain, row, base = found.gains[found.primary], found.row, found.base
    if found.primary == "accuracy" and gain.up and base["constrained"] >= row["accuracy"]:
        said.append(
            f"{found.name}: the untouched model does as well once its answers are constrained to the labels "
            f"({base['constrained']:.3f}, against {row['accuracy']:.3f} written)."
        )
    p, count = row["p_value"], int(row["controls"])
    if p == p:
        at, where = _p(p, count), WORDS[row["p_measure"]]
        if p > 0.05 and gain.up and 1 / (1 + count) <= 0.05:
            said.append(
                f"{found.name}: its controls do as well in {where} ({at}): the choice of heads is not what helps."
            )
        elif p > 0.05 and gain.up:
            said.append(f"{found.name}: {count} controls cannot show that its heads matter ({at} in {where}).")
        elif gain.up or found.gains[row["p_measure"]].up:
            said.append(f"{found.name}: more than its controls gain in {where} ({at}).")
    if found.drift is not None and found.drift.up:
        said.append(
            f"{found.name}: neutral text becomes less likely, perplexity × {number(row['perplexity_ratio'])} "
            f"({found.drift.mean:+.3f} nats a token, {found.drift.low:.3f} to {found.drift.high:.3f})."
        )
    return said


def collapse(name: str, found: Judged, base: Judged) -> str | None:
    """Say so if a variant gives nearly always one label and the base does not."""
    for labels, before, how in (
        (found.forced_labels, base.forced_labels, "constrained to the labels"),
        (found.written_labels or [], base.written_labels or [], "writing"),
    ):
        now, earlier = shares(labels), shares(before)
        for label, share in now.items():
            if label != NONE and share >= max(COLLAPSED, earlier.get(label, 0.0) + MORE):
                return (
                    f"{name}: {how} it gives {label!r} to {share:.0%} of the items (base: {earlier.get(label, 0):.0%})."
                )
    return None


def _size(gain: Gain) -> str:
    if gain.mean != gain.mean:
        return "not measured"
    if gain.low != gain.low:
        return f"{gain.mean:+.3f}"
    return f"{gain.mean:+.3f} ({gain.low:.3f} to {gain.high:.3f})"


def _number(value: float) -> str:
    return "none" if value != value else f"{value:.3f}"


def _p(p: float, count: int) -> str:
    return f"p = {p:.3f}, {count} controls"
