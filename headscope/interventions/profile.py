"""Head profiles: steer one head at a time, and see which heads help (Zhang et al. 2024, arXiv 2311.02262)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.errors import DataError, RequestError
from headscope.interventions.base import Head, Heads, Method, resolve
from headscope.interventions.outcomes import (
    METRICS,
    Floats,
    column,
    encoded,
    open_outcomes,
    prepared,
    provenance_of,
    stored,
)

if TYPE_CHECKING:
    from headscope.probes.base import Progress
    from headscope.probes.scores import HeadScores

LEAST = 1e-4
"""Least mean gain of a head that is selected: below lies what rounding does, which may have one sign throughout."""

Make = Method | Callable[[Head], Method]
"""A method, which is moved from head to head, or a function that gives the method on one head."""


def profile_heads(
    model: Any,
    make: Make,
    task: Any,
    items: Sequence[Any] | None = None,
    *,
    heads: Sequence[Head] | None = None,
    metric: str = "logprob",
    q_max: float = 0.05,
    min_gain: float = LEAST,
    batch: int = 8,
    seed: int = 0,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> HeadScores:
    """Steer one head at a time over the items of a task and score how much each helps.

    Parameters
    ----------
    make
        A method, or a function of a head that gives it, such as ``lambda head: PASTA(heads=(head,), …)``.
    task, items
        See ``headscope.interventions.outcomes.prepared``. Items with one source are one cluster.
    heads
        Heads to try; by default all of the model, in the method's ``layers`` where it names some. Others have no score.
    metric
        One of ``headscope.interventions.outcomes.METRICS``. ``"entropy"`` counts its fall as the gain.
    q_max
        False discovery rate (Benjamini-Hochberg over all heads tried) below which a head that helps is selected.
    min_gain
        Mean gain that a selected head must pass: a tiny one may be beyond doubt and still not worth having.
    batch
        Items read at once.
    out, fresh
        Folder of finished heads, from which a killed run goes on, and whether to discard what is there.
    progress
        Called with (``"profile"``, heads done, heads in all).

    Returns
    -------
    One row per head. ``score`` is the mean gain in the metric over the untouched model, with an interval that
    resamples sources; ``p_value`` is one-sided, by flipping the sign of whole sources; ``q_value`` its correction over
    the heads tried. Columns ``steered``, the metric under the method, and
    ``change_<metric>`` for every metric stand beside.

    Raises
    ------
    RequestError
        If there is no such head or metric, or the method is neutral and so cannot help.
    DataError
        If the metric has no value on these items, as ``"valid"`` where there are no candidates.
    """
    import pandas as pd

    from headscope.probes.scores import HeadScores
    from headscope.probes.statistics import bootstrap, head_table

    which, sign = column(metric), -1.0 if metric == "entropy" else 1.0
    data = prepared(model, task, items)
    chosen = list(dict.fromkeys(reachable(make, model) if heads is None else listed(tuple(heads), model)))
    model.sites.check_heads(tuple(chosen))
    on = _maker(make)
    example = on(chosen[0])
    if example.neutral:
        raise RequestError(f"{type(example).__name__} at these parameters changes nothing: no head can help.")
    kind = encoded(example)
    store = open_outcomes(model, task, data, out, fresh, method=without(kind, "heads"), batch=batch)
    base = stored(store, "base", "base", model, data, batch=batch)
    if not np.isfinite(base[:, which]).any():
        raise DataError(
            f"No item has a value of {metric!r}: it needs items with several candidates. Choose another metric."
        )
    values: dict[Head, Floats] = {}
    for done, (layer, head) in enumerate(chosen):
        if progress is not None:
            progress("profile", done, len(chosen))
        name = f"{layer:04d}-{head:04d}"
        values[layer, head] = stored(store, "heads", name, model, data, on((layer, head)), batch=batch)
    if progress is not None:
        progress("profile", len(chosen), len(chosen))
    shape = (len(data), model.spec.n_layers, model.spec.n_heads, len(METRICS))
    steered = np.full(shape, np.nan)
    for (layer, head), found in values.items():
        steered[:, layer, head] = found
    sources = [item.source for item in data]
    gain = sign * (steered[..., which] - base[:, None, None, which])
    shown = np.moveaxis(steered - base[:, None, None, :], -1, 0)
    extra = {f"change_{other}": bootstrap(shown[m], sources, draws=0).mean for m, other in enumerate(METRICS)}
    extra = {"steered": bootstrap(steered[..., which], sources, draws=0).mean, **extra}
    nothing = np.where(np.isnan(gain), np.nan, 0.0)
    table, notes = head_table(gain, sources, null=nothing, threshold=min_gain, q_max=q_max, extra=extra, seed=seed)
    table = _real(table, model)
    same = [pair for pair, found in values.items() if np.array_equal(found, base, equal_nan=True)]
    if same:
        notes.append(f"Steering {len(same)} of {len(chosen)} heads changed no output of any item.")
    mean = "fall of the entropy" if sign < 0 else f"gain in {metric}"
    notes.insert(
        0, f"Score: mean {mean} over the untouched model ({np.nanmean(base[:, which]):.4g}) on {len(data)} items."
    )
    parts = {
        "probe": f"profile-{example.name}",
        "parameters": {"method": without(kind, "heads"), "metric": metric, "q_max": q_max, "min_gain": min_gain},
    }
    facts = provenance_of(model, task, data, seed=seed, **parts, notes=notes)
    overall = pd.DataFrame([_row("base", base)])
    return HeadScores(table, f"profile-{example.name}", facts, {"base": overall})


def intersect(profiles: Sequence[HeadScores], k: int) -> tuple[Head, ...]:
    """Return the heads that are among the ``k`` best of every profile, best mean rank first.

    Raises
    ------
    RequestError
        If there is no profile, or they are of different models.
    """
    if not profiles:
        raise RequestError("intersect() needs at least one profile.")
    prints = {profile.provenance.get("model", {}).get("fingerprint") for profile in profiles}
    if len(prints) > 1:
        raise RequestError("These profiles are of different models: their heads have nothing in common.")
    tops = [profile.top(k) for profile in profiles]
    common = set(tops[0]).intersection(*tops[1:])
    return tuple(sorted(common, key=lambda pair: (sum(top.index(pair) for top in tops), pair)))


def combined(profiles: Sequence[HeadScores], k: int) -> HeadScores:
    """Return one table of heads over several tasks, of which those that ``intersect`` gives are selected.

    Returns
    -------
    One row per head that every profile has measured. ``score`` is its mean place in the rankings, from 1 (best in all)
    to 0 (last in all); columns ``rank_<task>`` and ``score_<task>`` stand beside.
    """
    import pandas as pd

    from headscope.probes.scores import HeadScores

    common = set(intersect(profiles, k))
    names = [str(profile.provenance.get("data", {}).get("name", i)) for i, profile in enumerate(profiles)]
    names = [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names)]
    keys = ["layer", "head"]
    columns: dict[str, Any] = {}
    for name, profile in zip(names, profiles, strict=True):
        ranked = profile.ranked().dropna(subset=["score"]).set_index(keys)
        columns[f"score_{name}"] = ranked["score"]
        columns[f"rank_{name}"] = pd.Series(range(1, len(ranked) + 1), index=ranked.index)
    table = pd.DataFrame(columns).dropna().reset_index()
    if table.empty:
        raise RequestError("No head was measured in every one of these profiles.")
    ranks = table[[f"rank_{name}" for name in names]].to_numpy(dtype=float)
    lengths = np.array([len(profile.table.dropna(subset=["score"])) for profile in profiles])
    table["score"] = (1 - (ranks - 1) / np.maximum(lengths - 1, 1)).mean(1)
    table["n"] = len(profiles)
    for name in ("ci_low", "ci_high", "null_mean", "p_value"):
        table[name] = np.nan
    table["selected"] = [pair in common for pair in zip(table["layer"], table["head"], strict=True)]
    first = dict(profiles[0].provenance)
    notes = [
        f"{len(common)} heads are among the {k} best on all of {', '.join(names)}; "
        f"{len(table) * np.prod(k / lengths.clip(min=k)):.1f} would be by chance."
    ]
    facts = {**first, "probe": "profile-common", "parameters": {"k": k, "tasks": names}, "notes": notes}
    facts["data"] = {"name": " and ".join(names), "parameters": {}, "n": int(sum(p.table["n"].max() for p in profiles))}
    return HeadScores(table, "profile-common", facts)


def listed(heads: Heads, model: Any) -> tuple[Head, ...]:
    """Return heads as pairs, those of the model's own attention for ``"all"``."""
    found = resolve(heads, model)
    assert not isinstance(found, str)
    return found


def reachable(make: Make, model: Any) -> tuple[Head, ...]:
    """Return the heads that a method can act on: those in its layers where it names some, else all of the model."""
    layers, heads = getattr(make, "layers", None), listed("all", model)
    return heads if layers is None else tuple(head for head in heads if head[0] in layers) or heads


def _maker(make: Make) -> Callable[[Head], Method]:
    if isinstance(make, Method):
        method = make
        return lambda head: method.with_heads((head,))
    return make


def without(kind: Any, name: str) -> Any:
    """Return a method's data without one field: what stays equal while the field is varied."""
    return {key: value for key, value in kind.items() if key != name} if isinstance(kind, dict) else kind


def _real(table: Any, model: Any) -> Any:
    """Keep the heads that the model has: layers may differ in their number."""
    known = set(listed("all", model))
    mine = [pair in known for pair in zip(table["layer"], table["head"], strict=True)]
    return table[mine].reset_index(drop=True)


def _row(kind: str, found: Floats) -> dict[str, Any]:
    means = {
        metric: float(np.nanmean(found[:, m])) if np.isfinite(found[:, m]).any() else float("nan")
        for m, metric in enumerate(METRICS)
    }
    return {"kind": kind, **means}
