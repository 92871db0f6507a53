"""Two rankings side by side: two probes of one model, or one probe of two models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from headscope.errors import DataError
from headscope.report.agreement import DRAWS, METHODS, Correlation, heads_of, labels, overlap, rank_correlation
from headscope.report.numbers import number, plural

if TYPE_CHECKING:
    from headscope.probes.scores import HeadScores

TOP = (5, 10, 20, 50, 100)
BINS = 10


@dataclass(frozen=True, eq=False)
class Comparison:
    """How far two rankings of heads agree.

    Parameters
    ----------
    a, b
        Names of the two.
    scores
        The two rankings themselves.
    matched
        Whether both have the same (layer, head) pairs, so that heads can be compared one by one.
    statement
        What was compared, what could not be, and why, in words.
    correlations
        ``"spearman"`` and ``"kendall"``: of the scores of heads if ``matched``, else of the depth profiles.
    overlaps
        One row per set: ``set`` ("top 10", "selected"), size_a, size_b, shared, expected, jaccard,
        expected_jaccard, p_value. Empty unless ``matched``.
    movers
        Heads that differ most, largest first: layer, head, score_a, score_b, change, rank_a, rank_b, apart.
        Empty unless ``matched``.
    profile
        One row per tenth of the depth: depth (middle, 0 to 1), mean_a, mean_b, selected_a, selected_b.
    """

    a: str
    b: str
    scores: tuple[HeadScores, HeadScores]
    matched: bool
    statement: str
    correlations: Mapping[str, Correlation]
    overlaps: pd.DataFrame
    movers: pd.DataFrame
    profile: pd.DataFrame
    _joined: pd.DataFrame = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row per head with both scores and ranks if ``matched``, else the depth profile."""
        return (self._joined if self.matched else self.profile).copy()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the heads' own rows, as plain JSON-able values; what is not a number is None."""
        value: dict[str, Any] = _plain(
            {
                "a": self.a,
                "b": self.b,
                "matched": self.matched,
                "statement": self.statement,
                "correlations": {name: vars(found) for name, found in self.correlations.items()},
                "overlaps": self.overlaps.to_dict("records"),
                "movers": self.movers.to_dict("records"),
                "profile": self.profile.to_dict("records"),
            }
        )
        return value

    def plot(self) -> Any:
        """Scatter of the heads if ``matched``, else the two depth profiles, as a plotly figure."""
        from headscope.report import figures

        if self.matched:
            return figures.agreement_scatter(*self.scores, names=(self.a, self.b))
        return figures.depth_profile(self.profile, names=(self.a, self.b))

    def report(self, path: str | Path) -> Path:
        """Write one HTML file that opens offline."""
        from headscope.report.html import write_comparison

        return write_comparison(self, path)


def compare(a: HeadScores, b: HeadScores, *, top: int = 20, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Compare two rankings.

    With the same heads in both, scores are correlated head by head and sets of top heads are set against chance.
    With different heads (models of different shape) only the course over relative depth can be compared, and the
    result says so.

    Parameters
    ----------
    a, b
        Scores of two probes or of two models.
    top
        Heads in the table of movers.
    draws, seed
        Bootstrap resamples of the correlations' intervals, and their seed.

    Raises
    ------
    DataError
        If fewer than one mover is asked for.
    """
    if top < 1:
        raise DataError(f"compare(top={top}): ask for at least one head.")
    names = labels([a, b])
    matched = heads_of(a) == heads_of(b)
    profile = _profile(a, b)
    if matched:
        joined = _join(a, b)
        pairs, layers = (joined["score_a"], joined["score_b"]), joined["layer"].to_numpy()
        overlaps, movers = _overlaps(a, b), _movers(joined, top)
    else:
        joined, overlaps, movers, layers = (pd.DataFrame(), pd.DataFrame(), pd.DataFrame(), None)
        pairs = (profile["mean_a"], profile["mean_b"])
    correlations = {
        method: rank_correlation(
            pairs[0].to_numpy(dtype=np.float64),
            pairs[1].to_numpy(dtype=np.float64),
            method,
            clusters=layers,
            # Ten points of a profile are too few, and too dependent, to resample.
            draws=draws if matched else 0,
            seed=seed,
        )
        for method in METHODS
    }
    statement = _statement(a, b, matched, correlations["spearman"].n, len(profile))
    return Comparison(names[0], names[1], (a, b), matched, statement, correlations, overlaps, movers, profile, joined)


def _join(a: HeadScores, b: HeadScores) -> pd.DataFrame:
    columns = ["score", "ci_low", "ci_high", "selected"]
    both = a.table[["layer", "head", *columns]].merge(
        b.table[["layer", "head", *columns]], on=["layer", "head"], suffixes=("_a", "_b")
    )
    for side in "ab":
        both[f"rank_{side}"] = both[f"score_{side}"].rank(ascending=False, method="min")
    # Scores of different probes have different units: then the change is one of standard scores.
    same = a.probe == b.probe
    values = {side: both[f"score_{side}"] if same else _standard(both[f"score_{side}"]) for side in "ab"}
    both["change"] = values["b"] - values["a"]
    # Comparisons with NaN are False: unknown intervals are never called apart.
    both["apart"] = same & ((both["ci_low_a"] > both["ci_high_b"]) | (both["ci_low_b"] > both["ci_high_a"]))
    return both


def _movers(joined: pd.DataFrame, top: int) -> pd.DataFrame:
    known = joined.dropna(subset=["change"])
    order = known["change"].abs().sort_values(ascending=False, kind="stable").index[:top]
    columns = ["layer", "head", "score_a", "score_b", "change", "rank_a", "rank_b", "apart"]
    movers = known.loc[order, columns].reset_index(drop=True)
    return movers.astype({"rank_a": "int64", "rank_b": "int64"})


def _overlaps(a: HeadScores, b: HeadScores) -> pd.DataFrame:
    total = len(a.table)
    sets = [(f"top {k}", a.top(k), b.top(k)) for k in TOP if k < total]
    sets.append(("selected", a.selected, b.selected))
    return pd.DataFrame([{"set": name, **vars(overlap(first, second, total))} for name, first, second in sets])


def _profile(a: HeadScores, b: HeadScores) -> pd.DataFrame:
    bins = min(BINS, a.shape[0], b.shape[0])
    profile = pd.DataFrame({"depth": (np.arange(bins) + 0.5) / bins})
    for side, scores in zip("ab", (a, b), strict=True):
        place = ((scores.table["layer"] + 0.5) / scores.shape[0] * bins).astype(int).clip(upper=bins - 1)
        groups = scores.table.groupby(place)
        profile[f"mean_{side}"] = groups["score"].mean().reindex(range(bins)).to_numpy()
        profile[f"selected_{side}"] = groups["selected"].mean().reindex(range(bins)).to_numpy()
    return profile


def _statement(a: HeadScores, b: HeadScores, matched: bool, n: int, bins: int) -> str:
    models = [scores.provenance.get("model", {}) for scores in (a, b)]
    names = [str(model.get("name") or "an unnamed model") for model in models]
    prints = [model.get("fingerprint") for model in models]
    if not matched:
        shapes = [f"{plural(s.shape[0], 'layer')} × {plural(s.shape[1], 'head')}" for s in (a, b)]
        where = shapes if shapes[0] != shapes[1] else [plural(len(s.table), "head") for s in (a, b)]
        return (
            f"The heads differ ({names[0]}: {where[0]}; {names[1]}: {where[1]}), so no head of one is a head of the "
            f"other. Compared is the course of the mean score over {bins} equal parts of the depth."
        )
    lost = len(a.table) - n
    text = f"{plural(n, 'head')} compared one by one"
    text += f"; {number(lost)} left out because a score is missing." if lost else "."
    if a.probe != b.probe:
        text += " The probes differ, so changes are in standard deviations of each ranking."
    if names[0] != names[1] or (prints[0] and prints[1] and prints[0] != prints[1]):
        text += (
            " The weights differ: heads match by position, which means something only if one model was trained "
            "from the other."
        )
    return text


def _standard(values: pd.Series[float]) -> pd.Series[float]:
    spread = float(values.std(ddof=0))
    return (values - values.mean()) / spread if spread > 0 else values - values.mean()


def _plain(value: Any) -> Any:
    """Replace numpy scalars by Python's own and NaN by None, at any depth."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
