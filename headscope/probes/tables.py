"""Between labelled arrays and tables: what all head probes need when they observe and summarise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headscope.errors import DataError
from headscope.probes.statistics import DRAWS, LEVEL, Floats, cluster, expanded_tail

if TYPE_CHECKING:
    import pandas as pd

    from headscope.probes.base import Context, Observation, SampleMeta

Observed = Sequence[tuple["SampleMeta", "Observation"]]


def take(stat: Any, *dims: str) -> NDArray[Any]:
    """Values of a labelled array with exactly these dimensions, in this order; a batch of one is dropped.

    Raises
    ------
    DataError
        If the batch holds more than one prompt: observations are of one sample.
    """
    if "batch" in stat.dims and "batch" not in dims:
        if stat.sizes["batch"] != 1:
            raise DataError(f"A probe observes one sample at a time; this run holds {stat.sizes['batch']}.")
        stat = stat.isel(batch=0)
    return np.asarray(stat.transpose(*dims).values)


def layers_of(stat: Any) -> NDArray[np.int64]:
    """Layer indices of a labelled array: layers without attention patterns are missing from it."""
    return np.asarray(stat.coords["layer"].values, dtype=np.int64)


def stack(observed: Observed, key: str, context: Context) -> Floats:
    """One quantity of all samples as (N, L, H); NaN for layers that have no attention pattern."""
    values = np.full((len(observed), context.n_layers, context.n_heads), np.nan)
    for i, (_, observation) in enumerate(observed):
        values[i, observation["layers"]] = observation[key]
    return values


def sources_of(observed: Observed) -> list[str]:
    """Cluster of every sample."""
    return [meta.source for meta, _ in observed]


def some(observed: Observed, probe: str) -> None:
    """Refuse to summarise nothing.

    Raises
    ------
    DataError
        If there is no observation.
    """
    if not observed:
        raise DataError(f"There is no sample for the probe {probe!r}. Give a data set with at least one sample.")


def mean_map(values: Floats) -> Floats:
    """Mean over samples without NaN and without a warning where nothing was counted: (N, L, H) -> (L, H)."""
    seen = np.isfinite(values)
    total, count = np.where(seen, values, 0.0).sum(axis=0), seen.sum(axis=0)
    mean: Floats = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def by_factor(
    observed: Observed, values: Floats, chosen: NDArray[np.bool_], names: Iterable[str], **columns: Floats
) -> pd.DataFrame:
    """Mean score over the chosen heads for every combination of factors.

    Parameters
    ----------
    values
        (N, L, H); NaN where a sample does not count.
    chosen
        (L, H) heads to average over; all heads if none is chosen.
    names
        Factors to break down by; those that no sample has are left out.
    columns
        Further quantities per sample (N,), averaged over all samples of the cell, counted or not.
    """
    import pandas as pd

    metas = [meta for meta, _ in observed]
    present = [name for name in names if all(name in meta.factors for meta in metas)]
    heads = chosen if chosen.any() else np.ones_like(chosen)
    per_sample = mean_map(np.moveaxis(values[:, heads], 1, 0))
    frame = pd.DataFrame({name: [meta.factors[name] for meta in metas] for name in present})
    frame = frame.assign(score=per_sample, n=np.isfinite(per_sample).astype(np.int64), **columns)
    if not present:
        return frame.iloc[:0]
    how = {"score": "mean", "n": "sum"} | dict.fromkeys(columns, "mean")
    return frame.groupby(present, sort=True, as_index=False).agg(how)


def contrast(
    values: Floats, sources: Sequence[str], inside: NDArray[np.bool_], *, draws: int = DRAWS, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Difference of means, samples inside minus the others, with an interval that resamples sources on each side.

    Parameters
    ----------
    values
        (N, …).
    inside
        (N,) membership.

    Returns
    -------
    difference, low, high
        Each (…); bounds are NaN if a side has fewer than two sources.
    """
    flat = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    shape = values.shape[1:]
    rng = np.random.default_rng(seed)
    means, draws_of, sizes = [], [], []
    for side in (inside, ~inside):
        groups = cluster(flat[side], [source for source, kept in zip(sources, side, strict=True) if kept])
        size = len(groups.names)
        weights = rng.multinomial(size, np.full(size, 1 / size), size=draws).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            draws_of.append((weights @ groups.sums) / (weights @ groups.counts))
        means.append(groups.mean)
        sizes.append(size)
    difference = (means[0] - means[1]).reshape(shape)
    if min(sizes) < 2:
        nothing = np.full(shape, np.nan)
        return difference, nothing, nothing
    tail = expanded_tail(min(sizes), LEVEL)
    spread = draws_of[0] - draws_of[1]
    lost = ~np.isfinite(spread).all(axis=0)
    bounds = np.quantile(np.where(lost, 0.0, spread), [tail, 1 - tail], axis=0)
    bounds[:, lost] = np.nan
    return difference, bounds[0].reshape(shape), bounds[1].reshape(shape)
