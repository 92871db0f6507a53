"""Heads with a fixed pattern on repeated random tokens: previous token, duplicate token, induction, echo.

On a block of random tokens that is repeated, nothing but position and repetition can guide a head, so attention to
one known key per query says what the head does. Only those entries of the pattern are computed, never T × T.

=========== ==================================== =====================================
pattern     key of the query q                   source
=========== ==================================== =====================================
previous    q − 1                                Elhage et al. 2021
duplicate   earlier occurrences of the token q   Wang et al. 2022 (IOI)
induction   the keys after those                 Olsson et al. 2022
echo        as duplicate, beside induction       RazorAttention (Tang et al. 2024)
=========== ==================================== =====================================

The score of a head is the attention mass on those keys, averaged over the queries that have any. Position 0 never
counts as such a key: it is where idle heads rest. The null is the mass on as many keys at other offsets.
``tl_mul`` and ``tl_abs`` are the two measures of TransformerLens' ``detect_head``, exactly and over all queries.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from headscope.attention.requests import Lookup, Request
from headscope.errors import DataError
from headscope.probes.base import Context, Observation, Probe, SampleMeta
from headscope.probes.statistics import head_table
from headscope.probes.tables import by_factor, layers_of, mean_map, some, sources_of, stack, take

if TYPE_CHECKING:
    import pandas as pd

    from headscope.probes.scores import HeadScores

Ints = NDArray[np.int64]
Pattern = Literal["previous", "duplicate", "induction"]

MAX_KEYS = 256
ROUNDING = 1e-5
NULL_REACH = 16
"""Null keys lie at most this far from the key that they stand for: near enough to share its recency."""


def target_keys(pattern: Pattern, ids: Sequence[int]) -> Ints:
    """Keys that an ideal head attends to: (T, m) positions, −1 in empty slots, nearest key first.

    Raises
    ------
    DataError
        If a token occurs more than ``MAX_KEYS`` times, as in text; these patterns are meant for random tokens.
    """
    length = len(ids)
    if pattern == "previous":
        return np.arange(-1, length - 1, dtype=np.int64)[:, None]
    seen: dict[int, list[int]] = {}
    earlier: list[list[int]] = []
    for position, token in enumerate(ids):
        places = seen.setdefault(int(token), [])
        earlier.append(places[::-1])
        places.append(position)
    width = max(map(len, earlier), default=0)
    if width > MAX_KEYS:
        raise DataError(
            f"One token occurs {width + 1} times in {length} tokens; {pattern} patterns are scored for at most "
            f"{MAX_KEYS} occurrences. Use random tokens from a larger vocabulary (hs.data.repeats)."
        )
    keys = np.full((length, max(width, 1)), -1, dtype=np.int64)
    for position, places in enumerate(earlier):
        keys[position, : len(places)] = places
    return np.where(keys >= 0, keys + 1, -1) if pattern == "induction" else keys


def null_keys(pattern: Pattern, ids: Sequence[int], reach: int = NULL_REACH) -> Ints:
    """As many other keys per query: each target moved by a random offset to a key that no pattern names.

    Deterministic in the tokens. A slot for which no such key was found is −1.
    """
    keys = target_keys(pattern, ids)
    length = len(ids)
    query = np.arange(length)[:, None]
    named = np.concatenate([target_keys(other, ids) for other in ("previous", "duplicate", "induction")], axis=1)
    rng = np.random.default_rng(zlib.crc32(np.asarray(ids, dtype=np.int64).tobytes()))
    chosen = np.full_like(keys, -1)
    drawn = np.full(keys.shape, -1.0)
    for offset in (*range(-reach, -1), *range(2, reach + 1)):
        moved = keys + offset
        free = (keys > 0) & (moved >= 1) & (moved < query)
        for column in named.T:
            free &= moved != column[:, None]
        # The largest of independent draws is a uniform choice among the free keys.
        draw = np.where(free, rng.random(keys.shape), -1.0)
        chosen, drawn = np.where(draw > drawn, moved, chosen), np.maximum(draw, drawn)
    return chosen


@dataclass(frozen=True)
class PatternKeys:
    """Keys to look up for one pattern: targets, null keys, then position 0 and the query itself: (T, 2m + 2)."""

    pattern: Pattern

    def __call__(self, prompt: Any) -> Ints:
        """Return the keys of one prompt."""
        ids = prompt.ids
        query = np.arange(len(ids))[:, None]
        return np.concatenate(
            [target_keys(self.pattern, ids), null_keys(self.pattern, ids), np.zeros_like(query), query], axis=1
        )


def pattern_scores(
    weights: NDArray[np.floating[Any]],
    keys: Ints,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
) -> dict[str, NDArray[np.float64]]:
    """Scores of all heads from the attention at the keys of ``PatternKeys``.

    Parameters
    ----------
    weights
        (L, H, T, 2m + 2) attention at ``keys``.
    keys
        (T, 2m + 2) positions; −1 in empty slots.
    exclude_bos, exclude_current_token
        Of TransformerLens, for ``tl_mul`` and ``tl_abs`` alone: leave out column 0, or the diagonal.

    Returns
    -------
    dict of (L, H)
        ``score``: mass on the target keys, mean over queries that have both target and null keys. ``null``: the same
        for the null keys, per target key. ``per_copy``: mean over (query, target key) pairs, as RazorAttention
        averages. ``tl_mul``, ``tl_abs``: TransformerLens' measures (``tl_abs`` without its rounding to 3 decimals;
        ``tl_mul`` NaN where the exclusions leave no more of a head's attention than rounding).
    """
    m = (keys.shape[1] - 2) // 2
    length = len(keys)
    query = np.arange(length)[:, None]
    weights = np.asarray(weights, dtype=np.float64)
    target, null, first, current = keys[:, :m], keys[:, m : 2 * m], weights[..., -2], weights[..., -1]
    at_target, at_null = weights[..., :m], weights[..., m : 2 * m]

    counts = (target > 0) & (target < query)
    stand_in = (null >= 0) & counts
    # Score and null are of the same queries: the first few, which see hardly any other key, would favour the score.
    relevant = stand_in.any(axis=1)
    size, found = counts[relevant].sum(axis=1), stand_in[relevant].sum(axis=1)
    mass = (at_target * counts)[..., relevant, :].sum(axis=-1)
    per_key = (at_null * stand_in)[..., relevant, :].sum(axis=-1) / found

    seen = (target >= 0) & (target <= query)
    total = np.full(weights.shape[:2], float(length))
    if exclude_bos:
        seen &= target != 0
        total -= first.sum(axis=-1)
    if exclude_current_token:
        seen &= target != query
        # With both left out, the one entry that is column 0 and diagonal must not be taken off twice.
        total -= current[..., int(exclude_bos) :].sum(axis=-1)
    overlap = (at_target * seen).sum(axis=(-1, -2))
    nothing = np.full(weights.shape[:2], np.nan)
    return {
        "score": mass.mean(axis=-1) if relevant.any() else nothing,
        "null": (per_key * size).mean(axis=-1) if relevant.any() else nothing,
        "per_copy": mass.sum(axis=-1) / size.sum() if relevant.any() else nothing,
        "tl_mul": np.divide(overlap, total, out=nothing.copy(), where=total > ROUNDING * length),
        "tl_abs": 1 - (seen.sum() - 2 * overlap + total) / length,
    }


@dataclass(frozen=True)
class PatternProbe(Probe):
    """What the probes of one pattern share.

    Parameters
    ----------
    threshold
        Least score of a selected head; it must also pass the null (false discovery rate 5 %).
    exclude_bos, exclude_current_token
        Options of TransformerLens' detector; they touch ``tl_mul`` and ``tl_abs`` alone.
    """

    data: ClassVar[str] = "repeats"
    pattern: ClassVar[Pattern]
    may_be_nan: ClassVar[frozenset[str]] = frozenset({"score", "null", "per_copy", "tl_mul"})

    threshold: float = 0.3
    exclude_bos: bool = False
    exclude_current_token: bool = False

    def requests(self, spec: Any) -> list[Request]:
        """Ask for the attention at the target keys, the null keys, position 0 and the query itself."""
        return [lookup(self.pattern)]

    def observe(self, run: Any, sample: Any) -> Observation:
        """Scores of one sample: arrays (L, H)."""
        return {
            "layers": layers_of(run[self.pattern]),
            **_scores_of(run, self.pattern, self.exclude_bos, self.exclude_current_token),
        }

    def summarise(self, observations: list[tuple[SampleMeta, Observation]], context: Context) -> HeadScores:
        """Mean over samples, paired against the null keys."""
        some(observations, self.name)
        values = stack(observations, "score", context)
        table, notes = head_table(
            values,
            sources_of(observations),
            null=stack(observations, "null", context),
            threshold=self.threshold,
            extra={name: mean_map(stack(observations, name, context)) for name in ("per_copy", "tl_mul", "tl_abs")},
            seed=context.seed,
        )
        return context.scores(self, table, {"by_factor": _by_length(observations, values, table, context)}, notes)


@dataclass(frozen=True)
class PreviousTokenHeads(PatternProbe):
    """Heads that attend to the token before the query."""

    name: ClassVar[str] = "previous"
    pattern: ClassVar[Pattern] = "previous"


@dataclass(frozen=True)
class DuplicateTokenHeads(PatternProbe):
    """Heads that attend to earlier occurrences of the query's own token."""

    name: ClassVar[str] = "duplicate"
    pattern: ClassVar[Pattern] = "duplicate"


@dataclass(frozen=True)
class InductionHeads(PatternProbe):
    """Heads that attend to the token after an earlier occurrence of the query's own token."""

    name: ClassVar[str] = "induction"
    pattern: ClassVar[Pattern] = "induction"


@dataclass(frozen=True)
class EchoHeads(Probe):
    """Echo heads, and the retrieval heads that RazorAttention makes of them and of induction heads, without any text.

    The paper repeats 2,500 random tokens four times and keeps the full cache for the top 14 % of heads by
    induction score and the top 1 % by echo score, over all layers. The score here is the echo mass, and the top 1 %
    are selected; ``induction`` and the per-copy means that the paper ranks by are columns beside it, and ``razor``
    marks the union. The paper decides per key-value head, by its best query head: ``details["kv_heads"]``.

    Parameters
    ----------
    echo_fraction, induction_fraction
        Shares of all heads to take by each score (at least one head each).
    floor
        A head is not taken, however well it ranks, below this mass or below its null: small models have fewer such
        heads than the shares name.
    """

    name: ClassVar[str] = "echo"
    data: ClassVar[str] = "repeats"
    may_be_nan: ClassVar[frozenset[str]] = frozenset(
        f"{kind}_{part}" for kind in ("echo", "induction") for part in ("score", "null", "per_copy")
    )

    echo_fraction: float = 0.01
    induction_fraction: float = 0.14
    floor: float = 0.1

    def requests(self, spec: Any) -> list[Request]:
        """Return the same captures as ``DuplicateTokenHeads`` and ``InductionHeads``, so that all three share them."""
        return [lookup("duplicate"), lookup("induction")]

    def observe(self, run: Any, sample: Any) -> Observation:
        """Echo and induction scores of one sample: arrays (L, H)."""
        found: dict[str, NDArray[Any]] = {"layers": layers_of(run["duplicate"])}
        for kind, pattern in (("echo", "duplicate"), ("induction", "induction")):
            scores = _scores_of(run, cast(Pattern, pattern))
            found |= {f"{kind}_{part}": scores[part] for part in ("score", "null", "per_copy")}
        return found

    def summarise(self, observations: list[tuple[SampleMeta, Observation]], context: Context) -> HeadScores:
        """Echo and induction scores over samples, and the union of the best of each."""
        some(observations, self.name)
        sources = sources_of(observations)
        shape = (context.n_layers, context.n_heads)
        ranked: dict[str, pd.DataFrame] = {}
        chosen: dict[str, NDArray[np.bool_]] = {}
        notes: list[str] = []
        for kind, fraction in (("echo", self.echo_fraction), ("induction", self.induction_fraction)):
            ranked[kind], notes = head_table(
                stack(observations, f"{kind}_score", context),
                sources,
                null=stack(observations, f"{kind}_null", context),
                threshold=self.floor,
                seed=context.seed,
            )
            per_copy = mean_map(stack(observations, f"{kind}_per_copy", context)).ravel()
            quota = max(1, round(fraction * per_copy.size))
            best = np.zeros(per_copy.size, dtype=bool)
            best[np.argsort(-np.nan_to_num(per_copy, nan=-1.0), kind="stable")[:quota]] = True
            ranked[kind] = ranked[kind].assign(per_copy=per_copy)
            chosen[kind] = best & ranked[kind]["selected"].to_numpy(dtype=bool)
        echo, induction = ranked["echo"], ranked["induction"]
        table = echo.assign(
            selected=chosen["echo"],
            razor=chosen["echo"] | chosen["induction"],
            induction=induction["score"],
            induction_ci_low=induction["ci_low"],
            induction_ci_high=induction["ci_high"],
            induction_null=induction["null_mean"],
            induction_per_copy=induction["per_copy"],
        )
        details = {"by_factor": _by_length(observations, stack(observations, "echo_score", context), table, context)}
        kv_heads = getattr(context.spec, "n_kv_heads", None)
        if kv_heads and context.n_heads % kv_heads == 0:
            details["kv_heads"] = _by_kv_head(table, shape, kv_heads)
        return context.scores(self, table, details, notes)


@cache
def lookup(pattern: Pattern) -> Lookup:
    """Return the request of one pattern: one object, so that all probes that make it share one capture."""
    return Lookup(keys=PatternKeys(pattern), name=pattern)


def _scores_of(
    run: Any, pattern: Pattern, exclude_bos: bool = False, exclude_current_token: bool = False
) -> dict[str, NDArray[np.float64]]:
    return pattern_scores(
        take(run[pattern], "layer", "head", "query", "slot"),
        PatternKeys(pattern)(run.prompt),
        exclude_bos=exclude_bos,
        exclude_current_token=exclude_current_token,
    )


def _by_length(
    observations: list[tuple[SampleMeta, Observation]],
    values: NDArray[np.float64],
    table: pd.DataFrame,
    context: Context,
) -> pd.DataFrame:
    chosen = table["selected"].to_numpy(dtype=bool).reshape(context.n_layers, context.n_heads)
    return by_factor(observations, values, chosen, ("length", "times"))


def _by_kv_head(table: pd.DataFrame, shape: tuple[int, int], kv_heads: int) -> pd.DataFrame:
    """Largest score of the query heads that share a key-value head."""
    _, heads = shape
    grouped = table.assign(kv_head=table["head"] // (heads // kv_heads)).groupby(["layer", "kv_head"], as_index=False)
    return grouped.agg(
        echo=("score", "max"),
        induction=("induction", "max"),
        selected=("selected", "max"),
        razor=("razor", "max"),
    )
