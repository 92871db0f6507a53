"""A cheap screen of heads: estimate what steering each would do, and measure the best exactly.

The estimate, see ``headscope.interventions.firstorder``, is exact for small edits. Edits are finite, so the best heads
are measured afterwards, and others beside, which tell what the screen has missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.errors import RequestError, UnsupportedError
from headscope.interventions.base import Head, Method
from headscope.interventions.firstorder import estimate
from headscope.interventions.outcomes import (
    encoded,
    open_outcomes,
    prepared,
    provenance_of,
)
from headscope.interventions.profile import LEAST, Make, listed, profile_heads, reachable, without

if TYPE_CHECKING:
    from headscope.probes.base import Progress
    from headscope.probes.scores import HeadScores


def screen_heads(
    model: Any,
    method: Method,
    task: Any,
    items: Sequence[Any] | None = None,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> HeadScores:
    """Estimate, for every head, the gain in the right answer's log-probability if it alone were steered.

    Parameters
    ----------
    method
        A method that acts on heads, on any of them.
    task, items, seed, out, fresh, progress
        As for ``headscope.interventions.profile.profile_heads``, whose metric ``"logprob"`` is what is estimated.

    Returns
    -------
    One row per head: ``score`` is the mean estimated gain in nats, with an interval. No head is selected.

    Raises
    ------
    RequestError
        If the method is neutral or changes anything beside heads.
    UnsupportedError
        If the model is no decoder with a language-model head.
    """
    from headscope.probes.scores import HeadScores
    from headscope.probes.statistics import head_table

    _check(model, method)
    data = prepared(model, task, items)
    heads = reachable(method, model)
    everywhere = method.with_heads(heads)
    kind = without(encoded(method), "heads")
    store = open_outcomes(model, task, data, out, fresh, method=kind, screen="first order")
    estimates = np.full((len(data), model.spec.n_layers, model.spec.n_heads), np.nan)
    for i, item in enumerate(data):
        if progress is not None:
            progress("screen", i, len(data))
        name = f"{i:06d}"
        shard = None if store is None else store.read("screen", name)
        found = shard.arrays["estimates"] if shard is not None else estimate(model, everywhere, item)
        if shard is None and store is not None:
            store.write("screen", name, {"id": item.id}, {"estimates": found})
        for layer, head in heads:
            estimates[i, layer, head] = found[layer, head]
    if progress is not None:
        progress("screen", len(data), len(data))
    sources = [item.source for item in data]
    table, notes = head_table(estimates, sources, seed=seed)
    table = table[np.isfinite(table["score"])].reset_index(drop=True)
    notes.insert(0, "Score: first-order estimate of the gain in log-probability; measure the best heads to be sure.")
    probe = f"screen-{method.name}"
    facts = provenance_of(model, task, data, seed=seed, probe=probe, parameters={"method": kind}, notes=notes)
    return HeadScores(table, probe, facts)


def screened_profile(
    model: Any,
    make: Make,
    task: Any,
    items: Sequence[Any] | None = None,
    *,
    top: int = 20,
    spread: int = 10,
    out: str | Path | None = None,
    **options: Any,
) -> HeadScores:
    """Screen all heads, then measure the ``top`` best of them, and some others, exactly.

    Parameters
    ----------
    top
        Heads of the best estimates that are measured.
    spread
        Heads that are measured beside, evenly spread over the rest of the ranking: they tell whether the screen
        misses heads, which the best alone cannot.
    options
        Of ``headscope.interventions.profile.profile_heads``.

    Returns
    -------
    The profile of the measured heads; heads that were not measured have no score. Column ``estimate`` holds the
    screen's score of all heads. ``details["screen"]`` has Spearman's correlation of estimate and measurement, over all
    measured heads and over the best alone.

    Raises
    ------
    RequestError
        If ``top`` is below 1 or the metric is not ``"logprob"``, of which the screen is an estimate.
    """
    import pandas as pd

    from headscope.probes.scores import HeadScores

    if top < 1 or spread < 0:
        raise RequestError(f"top={top}, spread={spread}: measure at least one head exactly.")
    if options.get("metric", "logprob") != "logprob":
        raise RequestError(
            "The screen estimates log-probabilities: leave out metric=, or profile all heads without it."
        )
    method = make if isinstance(make, Method) else make(listed("all", model)[0])
    shared = {name: options[name] for name in ("seed", "fresh", "progress") if name in options}
    folder = None if out is None else Path(out)
    screen = screen_heads(model, method, task, items, out=folder and folder / "screen", **shared)
    order = screen.top(len(screen))
    best, rest = order[:top], order[top:]
    places = sorted({round(at) for at in np.linspace(0, len(rest) - 1, min(spread, len(rest)))}) if rest else []
    others = [rest[i] for i in places]
    found = profile_heads(model, make, task, items, heads=[*best, *others], out=folder and folder / "exact", **options)
    table = found.table.merge(
        screen.table[["layer", "head", "score"]].rename(columns={"score": "estimate"}), on=["layer", "head"], how="left"
    )
    _over_all(table, len(order), options.get("q_max", 0.05), options.get("min_gain", LEAST))
    rows = [{"heads": name, **_agreement(table, heads)} for name, heads in (("all", [*best, *others]), ("best", best))]
    agreement = pd.DataFrame(rows)
    whole = rows[0]
    note = (
        f"Screened by first-order estimate; {len(best)} best and {len(others)} other heads measured. Rank "
        f"correlation of estimate and measurement over them: {whole['spearman']:.2f}."
    )
    notes = [*found.provenance["notes"], note]
    return HeadScores(table, found.probe, {**found.provenance, "notes": notes}, {**found.details, "screen": agreement})


def _agreement(table: Any, heads: Sequence[Head]) -> dict[str, Any]:
    from scipy import stats

    index = table.set_index(["layer", "head"]).loc[list(heads)]
    if len(index) < 3 or index["score"].nunique() < 2 or index["estimate"].nunique() < 2:
        return {"n": len(index), "spearman": float("nan"), "p_value": float("nan")}
    found = stats.spearmanr(index["estimate"], index["score"])
    return {"n": len(index), "spearman": float(found.statistic), "p_value": float(found.pvalue)}


def _over_all(table: Any, tried: int, q_max: float, min_gain: float) -> None:
    """Correct for all heads that were screened: the best of them were chosen on the items that they are tested on."""
    from headscope.probes.statistics import false_discovery

    measured = table["p_value"].notna().to_numpy()
    p = np.concatenate([table["p_value"].to_numpy()[measured], np.ones(tried - measured.sum())])
    table.loc[measured, "q_value"] = false_discovery(p)[: measured.sum()]
    table["selected"] = (table["score"] > min_gain) & (table["q_value"] < q_max)


def _check(model: Any, method: Method) -> None:
    if method.neutral:
        raise RequestError(f"{type(method).__name__} at these parameters changes nothing: there is nothing to screen.")
    if model.hf.config.is_encoder_decoder or model.spec.unembed is None or model.sites.default != "decoder":
        raise UnsupportedError(
            f"{model.name} ({model.spec.family}) is no decoder with a language-model head: screening needs its answers."
        )
    edits = method.with_heads(reachable(method, model)[:1]).edits(model)
    if not all(hasattr(edit, "heads") for edit in edits):
        raise RequestError(f"{type(method).__name__} changes more than heads: profile it without the screen.")
