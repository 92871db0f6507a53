"""How far rankings of the same heads agree: rank correlation, shared heads, and what chance would give."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headscope.errors import DataError

if TYPE_CHECKING:
    from headscope.probes.scores import HeadScores

Head = tuple[int, int]
METHODS = ("spearman", "kendall")
DRAWS = 500
MIN_CLUSTERS = 5
TOP = 20


@dataclass(frozen=True)
class Correlation:
    """A rank correlation with its bootstrap interval.

    Parameters
    ----------
    method
        ``"spearman"`` (ρ) or ``"kendall"`` (τ-b).
    value
        The correlation; NaN if fewer than three heads have both scores or one ranking is constant.
    low, high
        95 % interval; NaN where it could not be resampled.
    n
        Heads that have both scores.
    """

    method: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Overlap:
    """What two sets of heads share, beside what two random sets of these sizes would.

    Parameters
    ----------
    size_a, size_b, total
        Sizes of the two sets and number of heads that they were drawn from.
    shared, jaccard
        Heads in both; heads in both over heads in either.
    expected, expected_jaccard
        Means of the two under random sets (hypergeometric).
    p_value
        Probability that random sets share at least as many.
    """

    size_a: int
    size_b: int
    total: int
    shared: int
    jaccard: float
    expected: float
    expected_jaccard: float
    p_value: float


@dataclass(frozen=True)
class Agreement:
    """Agreement of several rankings of the same heads.

    Parameters
    ----------
    labels
        One name per ranking, unique.
    spearman, kendall
        Matrices (rankings, rankings).
    overlaps
        One row per pair: a, b, the fields of ``Overlap`` for the selected heads, and for the ``TOP`` best heads of
        both, top_shared, top_expected, top_p_value.
    left_out
        Labels of rankings whose heads differ, which cannot be compared head by head.
    unscored
        Labels of rankings in which no head has a score.
    """

    labels: tuple[str, ...]
    spearman: NDArray[np.float64]
    kendall: NDArray[np.float64]
    overlaps: pd.DataFrame
    left_out: tuple[str, ...] = ()
    unscored: tuple[str, ...] = ()


def labels(scores: Sequence[HeadScores]) -> list[str]:
    """Short unique names: of probe and model whatever tells the rankings apart, and a number where neither does."""
    names = [item.probe for item in scores]
    models = [str(item.provenance.get("model", {}).get("name") or "") for item in scores]
    if len(set(names)) < len(names) and len(set(models)) > 1:
        alone = len(set(names)) == 1 and all(models)
        names = models if alone else [f"{a} · {b}" if b else a for a, b in zip(names, models, strict=True)]
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if names.count(name) == 1 else f"{name} ({seen[name]})")
    return unique


def heads_of(scores: HeadScores) -> list[Head]:
    """All heads of a table, in its order."""
    return [(int(layer), int(head)) for layer, head in zip(scores.table["layer"], scores.table["head"], strict=True)]


def rank_correlation(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    method: str = "spearman",
    *,
    clusters: NDArray[np.int64] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Correlation:
    """Correlate two rankings; heads without both scores are left out.

    The interval is the percentile bootstrap. Heads of one layer are not independent, so whole layers are resampled
    when there are at least five of them, else single heads.

    Parameters
    ----------
    x, y
        Scores (N,) of the same heads.
    method
        ``"spearman"`` or ``"kendall"``.
    clusters
        Layer of each head (N,).
    draws, seed
        Resamples (0 for no interval) and seed.
    """
    if method not in METHODS:
        raise DataError(f"There is no rank correlation {method!r}. Known: {', '.join(METHODS)}.")
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    value = _correlate(x, y, method)
    low = high = float("nan")
    if draws and np.isfinite(value):
        groups = np.arange(len(x)) if clusters is None else np.asarray(clusters)[both]
        names = np.unique(groups)
        if len(names) < MIN_CLUSTERS:
            names = groups = np.arange(len(x))
        members = [np.flatnonzero(groups == name) for name in names]
        random = np.random.default_rng(seed)
        found = np.empty(draws)
        for draw in range(draws):
            chosen = np.concatenate([members[i] for i in random.integers(len(members), size=len(members))])
            found[draw] = _correlate(x[chosen], y[chosen], method)
        if np.isfinite(found).sum() >= draws / 2:
            low, high = (float(bound) for bound in np.nanquantile(found, [0.025, 0.975]))
    return Correlation(method, value, low, high, len(x))


def overlap(a: Collection[Head], b: Collection[Head], total: int) -> Overlap:
    """Compare two sets of heads out of ``total`` with chance.

    Raises
    ------
    DataError
        If a set is larger than the number of heads.
    """
    first, second = set(a), set(b)
    if max(len(first), len(second)) > total:
        raise DataError(f"Sets of {len(first)} and {len(second)} heads cannot come from {total} heads.")
    from scipy.stats import hypergeom

    shared, union = len(first & second), len(first | second)
    counts = np.arange(max(0, len(first) + len(second) - total), min(len(first), len(second)) + 1)
    chance = hypergeom(total, len(first), len(second))
    possible = len(first) + len(second) - counts
    expected_jaccard = float(np.sum(chance.pmf(counts) * counts / np.maximum(possible, 1)))
    return Overlap(
        size_a=len(first),
        size_b=len(second),
        total=total,
        shared=shared,
        jaccard=shared / union if union else float("nan"),
        expected=len(first) * len(second) / total if total else 0.0,
        expected_jaccard=expected_jaccard if union else float("nan"),
        p_value=float(chance.sf(shared - 1)) if first and second else float("nan"),
    )


def agreement(scores: Sequence[HeadScores]) -> Agreement | None:
    """Agreement of all rankings that have scores, for the same heads as the first; None if there is nothing to compare.

    Kendall and Spearman correlations here carry no interval; ``compare`` gives one for a pair.
    """
    names = labels(scores)
    scored = [i for i, item in enumerate(scores) if item.table["score"].notna().any()]
    if not scored:
        return None
    layout = heads_of(scores[scored[0]])
    kept = [i for i in scored if heads_of(scores[i]) == layout]
    if len(kept) < 2:
        return None
    values = [scores[i].table["score"].to_numpy(dtype=np.float64) for i in kept]
    matrices = {
        method: np.array([[rank_correlation(x, y, method, draws=0).value for y in values] for x in values])
        for method in METHODS
    }
    rows = []
    for row, i in enumerate(kept):
        for j in kept[row + 1 :]:
            shared = overlap(scores[i].selected, scores[j].selected, len(layout))
            k = min(TOP, len(layout))
            best = overlap(scores[i].top(k), scores[j].top(k), len(layout))
            top = {"top_shared": best.shared, "top_expected": best.expected, "top_p_value": best.p_value}
            rows.append({"a": names[i], "b": names[j], **vars(shared), **top})
    left_out = tuple(names[i] for i in scored if i not in kept)
    unscored = tuple(name for i, name in enumerate(names) if i not in scored)
    kept_names = tuple(names[i] for i in kept)
    return Agreement(kept_names, matrices["spearman"], matrices["kendall"], pd.DataFrame(rows), left_out, unscored)


def _correlate(x: NDArray[np.float64], y: NDArray[np.float64], method: str) -> float:
    from scipy import stats

    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    if method == "kendall":
        return float(stats.kendalltau(x, y).statistic)
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
