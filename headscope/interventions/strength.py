"""One parameter of a method over a range of values, on one prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from headscope.errors import RequestError, nearest

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from headscope.attention.edits import Edit
    from headscope.interventions.base import Method
    from headscope.interventions.continuation import Comparison, Continuation
    from headscope.models.prompt import Prompt
    from headscope.probes.base import Progress

GRAM = 3
"""Length of what counts as a repetition, in tokens."""


@dataclass(frozen=True, eq=False)
class Swept:
    """A prompt continued at each value of a parameter.

    Parameters
    ----------
    field
        The parameter.
    table
        One row for the method at neutral strength (``neutral``), whose value is NaN where neutral is another
        parameter, and one for each value, in rising order: ``value``; ``gain`` of the text that is written there, and
        ``base_gain`` of the text that the model writes without the method, in nats; ``target_gain``, with
        ``target_logprob`` under the method, of the target text; ``kl`` of the first token; ``diverges``, the step at
        which the texts part, NaN if they do not; ``length`` in tokens; ``repetition``; ``text``.
    comparisons
        What stands behind each row.
    """

    field: str
    table: pd.DataFrame
    comparisons: tuple[Comparison, ...]

    def plot(self) -> go.Figure:
        """Return gains and the shift of the first token over the values, as a figure."""
        from headscope.report.strength import continuation_curve

        return continuation_curve(self.table, self.field)


def strength(method: Method) -> tuple[str, float] | None:
    """Return the number that a method is neutral by, with its neutral value; None where it is no number.

    >>> from headscope.interventions import PASTA, KnockOut
    >>> strength(PASTA(region="fact", alpha=0.1)), strength(KnockOut(source="fact"))
    (('alpha', 1.0), None)
    """
    calm = method.neutralised()
    for field in fields(method):  # type: ignore[arg-type]
        value = getattr(calm, field.name)
        if not field.init or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        try:
            alone = replace(method, **{field.name: value})  # type: ignore[type-var]
        except RequestError:
            continue
        if alone.neutral and (method.neutral or getattr(method, field.name) != value):
            return field.name, float(value)
    return None


def numbers(method: Method) -> dict[str, float]:
    """Return the real numbers among a method's parameters, the one that it is neutral by first."""
    found = {field.name: getattr(method, field.name) for field in fields(method) if field.init}  # type: ignore[arg-type]
    main = strength(method)
    real = {name: value for name, value in found.items() if isinstance(value, float)}
    return real if main is None else {main[0]: float(found[main[0]]), **real}


def sweep_continuations(
    model: Any,
    prompt: Prompt | str,
    method: Method,
    field_name: str,
    values: Sequence[float],
    *,
    before: Sequence[Method | Edit] = (),
    target: str | None = None,
    max_new_tokens: int = 40,
    progress: Progress | None = None,
) -> Swept:
    """Continue a prompt at each value of a parameter, and at neutral strength.

    Parameters
    ----------
    method
        Its ``field_name`` is varied; all else stays.
    before
        Methods and edits that stay in force throughout, the neutral row included.
    target
        A text whose probability is measured at each value.
    progress
        Called with (stage, values done, values in all) at every layer; what it raises ends the work.

    Raises
    ------
    RequestError
        If the method has no such number, there is no value, or the method refuses one.
    """
    from headscope.interventions.continuation import Baseline

    variants = _variants(method, field_name, values)
    done = 0
    told = None if progress is None else (lambda stage, *_: progress(stage, done, len(variants)))
    baseline = Baseline(model, prompt, max_new_tokens, told)
    ids = None if not target else _ids(model, target)
    rows, found = [], []
    for value, neutral, variant in variants:
        parts = (*before, variant)
        comparison = baseline.compare(*parts)
        scored = None if ids is None else baseline.score(ids, *parts)
        rows.append({"value": value, "neutral": neutral, **_row(comparison, scored)})
        found.append(comparison)
        done += 1
    import pandas as pd

    return Swept(field_name, pd.DataFrame(rows), tuple(found))


def _variants(method: Method, name: str, values: Sequence[float]) -> list[tuple[float, bool, Any]]:
    """Return (value, whether it is neutral, method), the neutral one in its place or else first."""
    known = numbers(method)
    if name not in known:
        raise RequestError(f"{type(method).__name__} has no number {name!r} to vary.{nearest(name, known)}")
    whole = isinstance(getattr(method, name), int)
    chosen = sorted(dict.fromkeys(float(value) for value in values))
    if not chosen or not all(map(math.isfinite, chosen)):
        raise RequestError(f"{name}: give at least one finite number, not {list(values)}.")
    main = strength(method)
    calm = main[1] if main is not None and main[0] == name else math.nan
    found: list[tuple[float, bool, Any]] = [
        (value, False, replace(method, **{name: int(value) if whole and value.is_integer() else value}))  # type: ignore[type-var]
        for value in chosen
        if value != calm
    ]
    found.append((calm, True, method.neutralised()))
    return sorted(found, key=lambda one: -math.inf if math.isnan(one[0]) else one[0])


def _row(found: Comparison, target: Continuation | None) -> dict[str, Any]:
    row: dict[str, Any] = {"gain": found.steered.gain, "base_gain": found.base.gain}
    if target is not None:
        row |= {"target_gain": target.gain, "target_logprob": float(target.steered.sum())}
    return row | {
        "kl": found.kl,
        "diverges": math.nan if found.diverges is None else found.diverges,
        "length": len(found.steered.ids),
        "repetition": repetition(found.steered.ids),
        "text": found.steered.text,
    }


def repetition(ids: Sequence[int], length: int = GRAM) -> float:
    """Return the share of a text's runs of ``length`` tokens that came before in it.

    >>> repetition([1, 2, 3, 1, 2, 3, 1]), repetition([1, 2])
    (0.4, 0.0)
    """
    grams = [tuple(ids[i : i + length]) for i in range(len(ids) - length + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _ids(model: Any, text: str) -> tuple[int, ...]:
    found = tuple(int(i) for i in model.tokenizer(text, add_special_tokens=False)["input_ids"])
    if not found:
        raise RequestError(f"The tokenizer makes no token of the target text {text!r}.")
    return found
