"""Uncertainty of per-head means when samples come in clusters.

Samples that share a source (a needle, a text, a block of tokens) are not independent. Everything here therefore
resamples or flips whole sources. Results do not depend on the order of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headscope.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

DRAWS = 2000
LEVEL = 0.95
FEW_SOURCES = 10
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Clusters:
    """Sums and counts of values by source, sources in sorted order: both of shape (S, K)."""

    names: tuple[str, ...]
    sums: Floats
    counts: Floats

    @property
    def mean(self) -> Floats:
        """Mean over samples (K,); NaN where nothing was counted."""
        return _ratio(_ordered_sum(self.sums), self.counts.sum(axis=0))


@dataclass(frozen=True)
class Interval:
    """Estimates with bounds, each of the shape of one sample's values; ``n`` counts samples."""

    mean: Floats
    low: Floats
    high: Floats
    n: NDArray[np.int64]


def cluster(values: Floats, sources: Sequence[str]) -> Clusters:
    """Sum ``values`` (N, K) by source, leaving out NaN.

    Raises
    ------
    DataError
        If there are no samples, or not one source per sample.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(sources):
        raise DataError(f"Statistics need one source per sample: {values.shape} values, {len(sources)} sources.")
    if not len(values):
        raise DataError("There is no sample to average over. Give at least one sample that counts.")
    names = tuple(sorted(set(map(str, sources))))
    place = {name: i for i, name in enumerate(names)}
    index = np.array([place[str(source)] for source in sources])
    seen = np.isfinite(values)
    filled = np.where(seen, values, 0.0)
    sums = np.stack([_ordered_sum(filled[index == i]) for i in range(len(names))])
    counts = np.stack([seen[index == i].sum(axis=0) for i in range(len(names))]).astype(np.float64)
    return Clusters(names, sums, counts)


def bootstrap(
    values: Floats, sources: Sequence[str], *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Mean over samples with a bootstrap interval that resamples sources with replacement.

    The percentile interval is expanded for few clusters (Hesterberg 2015, "What teachers should know about the
    bootstrap"): the tail probability α/2 becomes Φ(−√(S/(S−1)) · t_{1−α/2, S−1}) for S sources. Like the plain
    percentile interval it never leaves the range of the data. One source alone gives NaN bounds.

    Parameters
    ----------
    values
        (N, …): one value per sample and whatever follows; NaN where a sample does not count.
    sources
        N names of clusters.
    draws, level, seed
        Number of resamples, coverage, and seed.
    """
    values = np.asarray(values, dtype=np.float64)
    shape = values.shape[1:]
    groups = cluster(_flat(values), sources)
    mean, n = groups.mean, groups.counts.sum(axis=0).astype(np.int64)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    size = len(groups.names)
    if size > 1 and draws:
        weights = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=draws).astype(np.float64)
        tail = expanded_tail(size, level)
        for part in _slices(mean.size, draws):
            means = _ratio(weights @ groups.sums[:, part], weights @ groups.counts[:, part])
            low[part], high[part] = _nanquantile(means, [tail, 1 - tail])
        # Weighted sums round: a mean of equal values must not stand outside its own interval.
        low, high = np.fmin(low, mean), np.fmax(high, mean)
        alone = (groups.counts > 0).sum(axis=0) <= 1
        low[alone], high[alone] = np.nan, np.nan
    return Interval(mean.reshape(shape), low.reshape(shape), high.reshape(shape), n.reshape(shape))


def expanded_tail(clusters: int, level: float = LEVEL) -> float:
    """Tail probability of the expanded percentile interval for this many clusters."""
    from scipy import stats

    alpha = 1 - level
    return float(stats.norm.cdf(-math.sqrt(clusters / (clusters - 1)) * stats.t.ppf(1 - alpha / 2, df=clusters - 1)))


def sign_flip(difference: Floats, sources: Sequence[str], *, flips: int | None = None, seed: int = 0) -> Floats:
    """One-sided p-values for mean(difference) > 0 by flipping the sign of whole sources.

    Under the null a source's difference is as likely positive as negative. All 2^S sign patterns are tried when
    there are no more of them than ``flips``; else ``flips`` random ones, with +1 in numerator and denominator.

    Parameters
    ----------
    difference
        (N, …): score minus null score of each sample; NaN where it does not count.
    flips
        Sign patterns; by default enough to pass a 5 % false discovery rate for one head alone among all.

    Returns
    -------
    p-values of shape (…); NaN where nothing was counted.
    """
    values = np.asarray(difference, dtype=np.float64)
    shape = values.shape[1:]
    groups = cluster(_flat(values), sources)
    size, width = groups.sums.shape
    flips = max(10_000, 40 * width) if flips is None else flips
    observed = _ordered_sum(groups.sums)
    # Sums in another order round differently: what is equal in exact arithmetic counts as a tie.
    bar = observed - 1e-12 * np.abs(groups.sums).sum(axis=0)
    exact = size < 63 and 2**size <= flips
    total = 2**size if exact else flips
    rng = np.random.default_rng(seed)
    hits = np.zeros(width)
    for part in _slices(total, max(width, size)):
        rows = part.stop - part.start
        if exact:
            bits = (np.arange(part.start, part.stop)[:, None] >> np.arange(size)) & 1
        else:
            bits = rng.integers(0, 2, size=(rows, size))
        hits += ((1.0 - 2.0 * bits) @ groups.sums >= bar).sum(axis=0)
    p = hits / total if exact else (hits + 1) / (total + 1)
    return np.where(groups.counts.sum(axis=0) > 0, p, np.nan).reshape(shape)


def false_discovery(p: Floats) -> Floats:
    """Benjamini-Hochberg q-values of the finite p-values; NaN stays NaN."""
    from scipy import stats

    p = np.asarray(p, dtype=np.float64)
    q = np.full(p.shape, np.nan)
    finite = np.isfinite(p)
    if finite.any():
        q[finite] = stats.false_discovery_control(p[finite], method="bh")
    return q


def head_table(
    values: Floats,
    sources: Sequence[str],
    *,
    null: Floats | None = None,
    threshold: float | None = None,
    q_max: float = 0.05,
    extra: Mapping[str, NDArray[np.generic]] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[pd.DataFrame, list[str]]:
    """Table of all heads with intervals, null, p- and q-values, and what limits them in words.

    Parameters
    ----------
    values
        (N, L, H) score of each head on each sample; NaN where a sample does not count for a head.
    sources
        N names of clusters.
    null
        (N, L, H) score of the same heads on the sample's matched control, for the paired test.
    threshold
        A head is selected if its score is above this, and, with ``null``, its q-value below ``q_max``. By default
        no threshold, and no head is selected unless there is a null.
    extra
        Further columns of shape (L, H).

    Returns
    -------
    table, notes
        Columns layer, head, score, ci_low, ci_high, n, null_mean, p_value, selected, q_value, then ``extra``.
    """
    import pandas as pd

    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 3:
        raise DataError(f"A table of heads needs values of shape (samples, layers, heads), not {values.shape}.")
    found = bootstrap(values, sources, draws=draws, seed=seed)
    _, layers, heads = values.shape
    empty = np.full((layers, heads), np.nan)
    null_mean, p, q = empty, empty, empty
    if null is not None:
        null = np.asarray(null, dtype=np.float64)
        if null.shape != values.shape:
            raise DataError(f"The null scores have shape {null.shape}; the scores have {values.shape}.")
        null_mean = bootstrap(null, sources, draws=0).mean
        p = sign_flip(values - null, sources, seed=seed)
        q = false_discovery(p)
    selected = np.zeros((layers, heads), dtype=bool)
    if threshold is not None or null is not None:
        selected = found.mean > (-np.inf if threshold is None else threshold)
        if null is not None:
            selected &= q < q_max
    layer, head = np.divmod(np.arange(layers * heads), heads)
    columns = {
        "layer": layer,
        "head": head,
        "score": found.mean.ravel(),
        "ci_low": found.low.ravel(),
        "ci_high": found.high.ravel(),
        "n": found.n.ravel(),
        "null_mean": null_mean.ravel(),
        "p_value": p.ravel(),
        "selected": selected.ravel(),
        "q_value": q.ravel(),
        **{name: np.asarray(column).reshape(-1) for name, column in (extra or {}).items()},
    }
    return pd.DataFrame(columns), cautions(sources, layers * heads, tested=null is not None, q_max=q_max)


def cautions(sources: Sequence[str], tests: int, *, tested: bool, q_max: float = 0.05) -> list[str]:
    """Say what a reader must know when there are few sources."""
    size = len(set(sources))
    notes = []
    if size == 1:
        notes.append("All samples come from one source: no interval can be given, bounds are NaN.")
    elif size < FEW_SOURCES:
        notes.append(f"Only {size} independent sources: intervals are wide and approximate.")
    if tested and 2.0**-size > q_max / tests:
        notes.append(
            f"With {size} sources no p-value can fall below {2.0**-size:.2g}: "
            f"a single head among {tests} cannot pass a false discovery rate of {q_max:g}."
        )
    return notes


def _flat(values: Floats) -> Floats:
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _ordered_sum(values: Floats) -> Floats:
    """Sum over the first axis, smallest first, so that the order of samples never shows in the last bits."""
    total: Floats = np.sort(values, axis=0).sum(axis=0)
    return total


def _ratio(sums: Floats, counts: Floats) -> Floats:
    ratio: Floats = np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)
    return ratio


def _nanquantile(values: Floats, probabilities: Sequence[float]) -> Floats:
    """Quantiles over the first axis without the draws in which nothing was counted."""
    if np.isfinite(values).all():
        bounds: Floats = np.quantile(values, probabilities, axis=0)
        return bounds
    result = np.full((len(probabilities), values.shape[1]), np.nan)
    some = np.isfinite(values).any(axis=0)
    result[:, some] = np.nanquantile(values[:, some], probabilities, axis=0)
    return result


def _slices(total: int, width: int) -> list[slice]:
    """Cut ``range(total)`` so that a float64 block with ``width`` other entries per item stays small."""
    step = max(1, _CHUNK_BYTES // (8 * max(1, width)))
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]
