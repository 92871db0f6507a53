"""Choosing heads on one half of the items, and saying on the other half what the choice is worth.

The calibration of ACT (Yu et al. 2024, arXiv 2406.15765), for any method that acts on heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import HeadscopeError, RequestError
from headscope.interventions.base import Head, Method
from headscope.interventions.outcomes import Floats, column, encoded, open_outcomes, prepared, split_sources, stored
from headscope.interventions.profile import LEAST, listed, profile_heads, without
from headscope.interventions.screen import screened_profile
from headscope.interventions.search import means

if TYPE_CHECKING:
    import pandas as pd

    from headscope.interventions.training import Example
    from headscope.probes.base import Progress
    from headscope.probes.scores import HeadScores
    from headscope.probes.store import Store


@dataclass(frozen=True)
class Calibration:
    """Heads chosen on one half of the items, and what they are worth on the other.

    Parameters
    ----------
    method
        The method on the chosen heads; None where no head passed.
    scores
        Profile of all heads on the first half.
    report
        On the second half: rows ``base``, ``chosen`` and ``control``, with metrics, gain over base and interval.
        For ``chosen``, ``p_value``: share of control sets that gain at least as much, with +1.
    notes
        What a reader must know.
    """

    method: Method | None
    scores: HeadScores
    report: pd.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def heads(self) -> tuple[Head, ...]:
        """The chosen heads."""
        return () if self.method is None else tuple(self.method.heads)  # type: ignore[attr-defined]


def calibrate_heads(
    model: Any,
    method: Method,
    task: Any,
    items: Sequence[Any] | None = None,
    *,
    split: float = 0.5,
    metric: str = "logprob",
    q_max: float = 0.05,
    min_gain: float = LEAST,
    k: int | None = None,
    screen: int | None = None,
    controls: int = 20,
    batch: int = 8,
    seed: int = 0,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Choose the heads on which a method helps, and test the choice on items that had no part in it.

    The heads that pass a one-sided test on the first part (Benjamini-Hochberg over all heads, against the untouched
    model) are steered together on the second, beside as many other heads of the same layers.

    Parameters
    ----------
    split
        Share of the sources on which heads are chosen; no source is in both parts.
    k
        Choose the ``k`` best heads, whether they pass or not.
    screen
        Estimate all heads first and measure this many of the best; see ``screened_profile``.
    controls
        Sets of other heads.
    metric, q_max, min_gain, batch, seed, out, fresh, progress
        As for ``profile_heads``.

    Raises
    ------
    RequestError
        If ``controls`` or ``k`` make no sense.
    DataError
        If there are fewer than four sources.
    """
    import pandas as pd

    if controls < 1:
        raise RequestError(f"controls={controls}: a choice of heads means nothing without at least one control.")
    data = prepared(model, task, items)
    first, second = split_sources(data, split, seed)
    folder = None if out is None else Path(out)
    options: dict[str, Any] = {
        "metric": metric,
        "q_max": q_max,
        "min_gain": min_gain,
        "batch": batch,
        "seed": seed,
        "fresh": fresh,
    }
    options |= {"out": folder and folder / "choose", "progress": progress}
    if screen is None:
        scores = profile_heads(model, method, task, first, **options)
    else:
        scores = screened_profile(model, method, task, first, top=screen, **options)
    chosen = scores.selected if k is None else scores.top(k)
    notes = [
        f"Chosen on {len(first)} items, measured on {len(second)} others that share no source with them.",
        f"{len(scores.selected)} of {len(scores)} heads pass a false discovery rate of {q_max:g}.",
    ]
    kind = without(encoded(method), "heads")
    store = open_outcomes(
        model, task, second, folder and folder / "report", fresh, method=kind, batch=batch, part="report"
    )
    base = stored(store, "base", "base", model, second, batch=batch)
    sets = {("base", 0): base}
    if chosen:
        sets |= _with_controls(model, method, scores, chosen, controls, second, store, batch, seed, notes, progress)
    else:
        notes.append("No head passed, so nothing is recommended. Give k= to measure the best heads all the same.")
    report = pd.DataFrame(_report(sets, second, metric, seed))
    return Calibration(method.with_heads(chosen) if chosen else None, scores, report, tuple(notes))


def _with_controls(
    model: Any,
    method: Method,
    scores: HeadScores,
    chosen: Sequence[Head],
    controls: int,
    data: Sequence[Example],
    store: Store | None,
    batch: int,
    seed: int,
    notes: list[str],
    progress: Progress | None,
) -> dict[tuple[str, int], Floats]:
    from headscope.probes.controls import draw_controls

    plan: dict[tuple[str, int], tuple[Head, ...]] = {("chosen", 0): tuple(sorted(chosen))}
    try:
        drawn = draw_controls(chosen, listed("all", model), controls, selected=scores.selected, seed=seed)
    except HeadscopeError as error:
        drawn = []
        notes.append(f"There are no controls: {error}")
    plan |= {("control", i): control.heads for i, control in enumerate(drawn)}
    found = {}
    for done, ((kind, number), heads) in enumerate(plan.items()):
        if progress is not None:
            progress("report", done, len(plan))
        name = f"{kind}-{_digest(heads)}"
        found[kind, number] = stored(store, "sets", name, model, data, method.with_heads(heads), batch=batch)
    if progress is not None:
        progress("report", len(plan), len(plan))
    return found


def _report(
    sets: dict[tuple[str, int], Floats], data: Sequence[Example], metric: str, seed: int
) -> list[dict[str, Any]]:
    from headscope.probes.statistics import bootstrap

    which, sign = column(metric), -1.0 if metric == "entropy" else 1.0
    sources, base = [item.source for item in data], sets["base", 0]
    others = [rows[:, which].mean() for (kind, _), rows in sets.items() if kind == "control"]
    rows = []
    for (kind, number), found in sets.items():
        gain = bootstrap(sign * (found - base)[:, [which]], sources, seed=seed)
        row: dict[str, Any] = {"kind": kind, "replicate": number, **means(found)}
        row |= {"gain": gain.mean[0], "gain_low": gain.low[0], "gain_high": gain.high[0], "p_value": math.nan}
        if kind == "chosen" and others:
            as_good = sum(sign * (other - found[:, which].mean()) >= -1e-12 for other in others)
            row["p_value"] = (1 + as_good) / (1 + len(others))
        rows.append(row)
    return rows


def _digest(heads: Sequence[Head]) -> str:
    from headscope.files import canonical_json, sha256_text

    return sha256_text(canonical_json([list(pair) for pair in heads]))[:16]
