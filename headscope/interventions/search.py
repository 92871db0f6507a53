"""Choosing the strength of a method: a grid of values, with labels or without, and which way each head wants.

ZeroTuning's three ways to its parameter (Han et al. 2025, arXiv 2505.11739): supervised search, search for least
entropy, and the profile of up- and down-effective heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.errors import RequestError, nearest
from headscope.interventions.base import Method
from headscope.interventions.outcomes import METRICS, Floats, column, encoded, open_outcomes, prepared, stored
from headscope.interventions.profile import LEAST, profile_heads, without

if TYPE_CHECKING:
    import pandas as pd

    from headscope.interventions.training import Example
    from headscope.probes.base import Progress
    from headscope.probes.scores import HeadScores

GAMMAS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""Factors that are tried for ZeroTuning (Han et al. 2025, arXiv 2505.11739)."""

GRIDS = {
    "gamma": GAMMAS,
    "alpha": (0.001, 0.01, 0.03, 0.1, 0.3, 0.6),
    "beta": (0.0, 0.2, 0.4, 0.6, 0.8),
    "psi": (0.05, 0.1, 0.2, 0.3, 0.5),
    "temperature": (0.5, 0.7, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0),
}
"""Usual values by field: ZeroTuning, PASTA, ACT, SpotLight, Temperature."""


@dataclass(frozen=True)
class Search:
    """What a search found.

    Parameters
    ----------
    method
        The method at the best value; at its neutral strength where the untouched model was best.
    best
        That value, or None where the untouched model was best.
    table
        One row for the untouched model and each value: value, metrics with intervals, ``valid`` and
        ``accuracy_among_valid`` beside ``accuracy``.
    notes
        What a reader must know.
    """

    method: Method
    best: float | None
    table: pd.DataFrame
    notes: tuple[str, ...] = ()


def search(
    model: Any,
    method: Method,
    task: Any,
    items: Sequence[Any] | None = None,
    *,
    field_name: str = "gamma",
    grid: Sequence[float] = GAMMAS,
    objective: str = "accuracy",
    batch: int = 8,
    seed: int = 0,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Search:
    """Try a parameter of a method on a grid and keep the best value.

    Parameters
    ----------
    method
        Its ``field_name`` is varied; all else stays.
    items
        Validation items. What the best value is worth must be measured on others.
    objective
        ``"entropy"``: least mean entropy of the first answer token, which reads no label. Otherwise a metric of
        ``headscope.interventions.outcomes.METRICS``, highest; ties go to ``"logprob"``, then to the untouched
        model, then to what comes first in ``grid``.
    out, fresh, progress
        Folder of finished values, from which a killed run goes on; see ``profile_heads``.

    Raises
    ------
    RequestError
        If the method has no such parameter, or the grid is empty.
    """
    import pandas as pd

    which = column(objective)
    names = getattr(type(method), "__dataclass_fields__", {})
    if field_name not in names:
        raise RequestError(f"{type(method).__name__} has no parameter {field_name!r}.{nearest(field_name, names)}")
    values = [float(value) for value in dict.fromkeys(grid)]
    if not values or not all(math.isfinite(value) for value in values):
        raise RequestError(f"grid={list(grid)}: give at least one finite number.")
    tried = {value: replace(method, **{field_name: value}) for value in values}  # type: ignore[type-var]
    data = prepared(model, task, items)
    store = open_outcomes(model, task, data, out, fresh, method=without(encoded(method), field_name), batch=batch)
    found: dict[float | None, Floats] = {None: stored(store, "base", "base", model, data, batch=batch)}
    for done, (value, changed) in enumerate(tried.items()):
        if progress is not None:
            progress("search", done, len(tried))
        if changed.neutral:
            found[value] = found[None]
        else:
            found[value] = stored(store, "values", f"{value:.12g}", model, data, changed, batch=batch)
    if progress is not None:
        progress("search", len(tried), len(tried))
    table = pd.DataFrame([_summary(value, rows, data, seed) for value, rows in found.items()])
    best = max(found, key=lambda value: _merit(found[value], which))  # the untouched model comes first: it wins ties
    neutral = best is None or tried[best].neutral
    chosen = method.neutralised() if best is None else tried[best]
    notes = [f"{len(data)} items; the best of {len(values)} values was chosen on them, so its gain here is too high."]
    if neutral:
        notes.append(f"No value of {field_name} had a better {objective} than the untouched model.")
    elif objective != "logprob" and np.nanmean(found[best][:, which]) == np.nanmean(found[None][:, which]):
        notes.append(f"Its {objective} is that of the untouched model; log-probability broke the tie.")
    if objective == "entropy":
        notes.append("Least entropy is confidence, not truth: look at accuracy where there are labels.")
    return Search(chosen, None if neutral else best, table, tuple(notes))


def updown_heads(
    model: Any,
    method: Method,
    task: Any,
    items: Sequence[Any] | None = None,
    *,
    field_name: str = "gamma",
    up: float = 2.0,
    down: float = 0.5,
    out: str | Path | None = None,
    **options: Any,
) -> HeadScores:
    """Profile heads twice, with the parameter above and below neutral, and say which way each head wants.

    Parameters
    ----------
    up, down
        Values of ``field_name``.
    options
        Of ``headscope.interventions.profile.profile_heads``.

    Returns
    -------
    One row per head: what ``profile_heads`` says of the direction with the larger gain, its p-value doubled for the two
    looks. Columns ``gain_up``, ``gain_down`` and ``direction``: ``"up"``, ``"down"``, or ``"none"`` where the gain does
    not pass.
    """
    from headscope.probes.scores import HeadScores
    from headscope.probes.statistics import false_discovery

    folder = None if out is None else Path(out)
    sides = {
        name: profile_heads(
            model,
            replace(method, **{field_name: value}),  # type: ignore[type-var]
            task,
            items,
            out=folder and folder / name,
            **options,
        )
        for name, value in (("up", up), ("down", down))
    }
    a, b = sides["up"].table, sides["down"].table
    rising = (a["score"] >= b["score"]) | b["score"].isna()
    table = a.where(rising, b, axis=0).astype(a.dtypes)
    table["p_value"] = (2 * table["p_value"]).clip(upper=1)
    table["q_value"] = false_discovery(table["p_value"].to_numpy())
    passes = (table["q_value"] < options.get("q_max", 0.05)) & (table["score"] > options.get("min_gain", LEAST))
    table["selected"] = passes
    table["gain_up"], table["gain_down"] = a["score"], b["score"]
    table["direction"] = np.where(~table["selected"], "none", np.where(rising, "up", "down"))
    facts = sides["up"].provenance
    notes = [f"Each head with {field_name} = {up:g} and {down:g}; the score is the larger gain.", *facts["notes"]]
    return HeadScores(table, f"updown-{method.name}", {**facts, "notes": notes}, sides["up"].details)


def means(rows: Floats) -> dict[str, float]:
    """Return the mean of every metric, and how often valid answers are right."""
    found = {}
    for m, name in enumerate(METRICS):
        seen = rows[np.isfinite(rows[:, m]), m]
        found[name] = float(seen.mean()) if len(seen) else math.nan
    valid = rows[:, column("valid")]
    found["accuracy_among_valid"] = float(rows[valid == 1, column("exact")].mean()) if (valid == 1).any() else math.nan
    return found


def _summary(value: float | None, rows: Floats, data: Sequence[Example], seed: int) -> dict[str, Any]:
    from headscope.probes.statistics import bootstrap

    found = bootstrap(rows, [item.source for item in data], seed=seed)
    row: dict[str, Any] = {"value": math.nan if value is None else value, "n": len(data), **means(rows)}
    for name in ("accuracy", "logprob", "entropy"):
        row[f"{name}_low"], row[f"{name}_high"] = found.low[column(name)], found.high[column(name)]
    return row


def _merit(rows: Floats, which: int) -> tuple[float, float]:
    value = float(np.nanmean(rows[:, which])) if np.isfinite(rows[:, which]).any() else -math.inf
    if which == column("entropy"):
        return -value, 0.0  # without labels there is nothing to break ties by
    return value, float(rows[:, column("logprob")].mean())
