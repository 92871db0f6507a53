"""A cheap screen of heads: what editing each would do to the answer, to first order, in two passes an item.

One pass forward and back gives the gradient of the answer's log-probability by every head's output z. Another gives
every head's edited output z' as it would be if that head alone were edited: all heads are edited at once, and each
layer's output projection still receives the untouched z, so that no layer sees what an earlier one did. The estimate
for a head is the sum of gradient · (z' − z) over positions. It is exact where the answer is linear in z; edits are
finite, so the best heads are measured exactly afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from headscope.attention.engine import active
from headscope.attention.session import Session
from headscope.errors import RequestError, UnsupportedError
from headscope.interventions.base import Head, Method
from headscope.interventions.outcomes import (
    Floats,
    candidates,
    encoded,
    open_outcomes,
    prepared,
    provenance_of,
)
from headscope.interventions.profile import LEAST, Make, listed, profile_heads, without
from headscope.interventions.training import Example, frozen
from headscope.models.forward import forward, prepare

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
    everywhere = method.with_heads(listed("all", model))
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
        estimates[i] = found
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


def estimate(model: Any, everywhere: Method, item: Example) -> Floats:
    """Return the first-order effect of the method on each head alone, (layers, heads), in nats.

    Parameters
    ----------
    everywhere
        The method on all heads that are of interest.
    """
    answers = candidates(item)
    grid = np.full((model.spec.n_layers, model.spec.n_heads), np.nan)
    if all(len(ids) == 1 for ids in answers):  # all candidates are read off one position
        effect = _effects(model, everywhere, item, (), [(0, ids[0]) for ids in answers])
        return _filled(grid, effect)
    # log p(right) − log Σ p(candidates): its change is that of the right answer less the mean change of all.
    parts = [_effects(model, everywhere, item, ids, None) for ids in answers]
    if len(answers) == 1:
        return _filled(grid, parts[0])
    share = torch.tensor([part[0] for part in parts]).double().softmax(0)
    total = {
        layer: parts[0][1][layer] - sum(w * part[1][layer] for w, part in zip(share, parts, strict=True))
        for layer in parts[0][1]
    }
    return _filled(grid, (0.0, total))


Effects = tuple[float, dict[int, Tensor]]
"""A log-probability, and by layer its first-order change (heads,) under the method."""


def _effects(
    model: Any, everywhere: Method, item: Example, answer: Sequence[int], choices: Sequence[tuple[int, int]] | None
) -> Effects:
    """Differentiate the answer's log-probability, or that of the first of ``choices`` at the last position."""
    whole = prepare(model, item.read(answer, drop_last=True) if answer else item.prompt)
    for context in whole.contexts.values():
        context.prompt_length = len(item.prompt)
    sites, count = model.sites.stack(None), max(1, len(answer))
    z: dict[int, Tensor] = {}

    def keep(layer: int, x: Tensor) -> Tensor:
        # Weights are frozen: the first head's output is where the graph begins.
        z[layer] = x if x.requires_grad else x.detach().requires_grad_()
        return z[layer]

    with frozen(model.hf), torch.enable_grad(), active(Session(model.sites, (), (), whole.contexts)), _at(sites, keep):
        logits = forward(model, whole.tensors, count)
        assert logits is not None
        rows = logits[0].double().log_softmax(-1)
        if choices is None:
            value = rows[range(count), list(answer)].sum()
        else:
            scores = rows[0, [token for _, token in choices]]
            value = scores[0] - scores.logsumexp(0) if len(choices) > 1 else scores[0]
        gradients = dict(zip(z, torch.autograd.grad(value, list(z.values())), strict=True))
    base = {layer: x.detach() for layer, x in z.items()}
    change: dict[int, Tensor] = {}

    def compare(layer: int, x: Tensor) -> Tensor:
        difference = gradients[layer].double() * (x.double() - base[layer].double())
        change[layer] = difference.reshape(-1, sites[layer].heads, difference.shape[-1] // sites[layer].heads).sum(
            (0, 2)
        )
        return base[layer]  # the next layer reads what it would without edits

    edits = everywhere.edits(model)
    session = Session(model.sites, (), edits, whole.contexts)
    with torch.no_grad(), active(session), _at(sites, compare):
        forward(model, whole.tensors, 1)
    return float(value.detach()), {layer: x.cpu() for layer, x in change.items()}


@contextlib.contextmanager
def _at(sites: dict[int, Any], take: Any) -> Iterator[None]:
    """Pass what every output projection reads through ``take(layer, x)``, after the edits in force."""
    handles = []

    def hook(layer: int) -> Any:
        def on_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (take(layer, args[0]), *args[1:])

        return on_input

    try:
        for layer, site in sites.items():
            handles.append(site.output.register_forward_pre_hook(hook(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _filled(grid: Floats, effect: Effects) -> Floats:
    for layer, values in effect[1].items():
        grid[layer, : len(values)] = values.numpy()
    return grid


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
    edits = method.with_heads(listed("all", model)[:1]).edits(model)
    if not all(hasattr(edit, "heads") for edit in edits):
        raise RequestError(f"{type(method).__name__} changes more than heads: profile it without the screen.")
