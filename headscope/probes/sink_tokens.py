"""Sink tokens: which tokens are sinks, and what makes them so.

Three phenomena go together (Guo et al. 2024, "Active-Dormant Attention Heads"; Sun et al. 2024, "Massive
Activations"): a token receives attention from many heads, its value vector is small (value-state drain), and its
residual stream has a few huge coordinates (residual peak). The same coordinates are how VAR (Kang et al. 2025) tells
sinks from content; there they are listed for two models, here they are learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headscope.attention.requests import Request, Residual, ValueNorms
from headscope.probes.base import Context, Observation, Probe, SampleMeta
from headscope.probes.sinks import eligible_keys, sink_requests
from headscope.probes.statistics import bootstrap, head_table
from headscope.probes.tables import layers_of, mean_map, some, sources_of, stack, take

if TYPE_CHECKING:
    import pandas as pd

    from headscope.probes.scores import HeadScores

TOP_DIMENSIONS = 6
MAX_TOKENS = 32
MAX_DRAIN = 1e6
_TINY = 1e-30


def sink_positions(
    means: NDArray[np.floating[Any]], first: int, *, later_threshold: float, min_share: float, min_queries: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Positions of sink tokens, the first one first, and the share of heads for which each position is a sink (T,).

    Parameters
    ----------
    means
        (L, H, T) mean attention that each key receives.
    min_share
        A later token is a sink token if it is a sink for at least this share of all heads.
    """
    share = (np.asarray(means) > later_threshold).mean(axis=(0, 1))
    keys = eligible_keys(means.shape[-1], first, min_queries)
    later = keys[share[keys] >= min_share]
    strongest = later[np.argsort(-share[later], kind="stable")[: MAX_TOKENS - 1]]
    return np.concatenate([np.array([first], dtype=np.int64), np.sort(strongest)]), share


def drain(
    norms: NDArray[np.floating[Any]], at: int | NDArray[np.int64], others: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Median value norm of ``others`` over the value norm at ``at``: (L, H), or (L, H, len(at)). Above 1: drained.

    At most ``MAX_DRAIN``, so that a value of exactly zero leaves means finite; 1 where all values are zero.
    """
    norms = np.asarray(norms, dtype=np.float64)
    middle = np.median(norms[..., others], axis=-1)
    middle = middle if isinstance(at, int) else middle[..., None]
    below = np.maximum(norms[..., at], middle / MAX_DRAIN)
    ratio: NDArray[np.float64] = np.divide(middle, below, out=np.ones_like(below), where=below > 0)
    return ratio


def normalised(residual: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """|h| over its root mean square, without gain: (…, D). Largest possible value √D."""
    h = np.abs(np.asarray(residual, dtype=np.float64))
    scaled: NDArray[np.float64] = h / np.maximum(np.sqrt((h**2).mean(axis=-1, keepdims=True)), _TINY)
    return scaled


def massive_dimensions(
    residual: NDArray[np.floating[Any]], sinks: NDArray[np.int64], others: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Coordinates of the residual stream that stand out at sink tokens.

    Parameters
    ----------
    residual
        (L + 1, T, D) residual stream.

    Returns
    -------
    dict
        ``dims``, ``at_sinks``, ``at_others`` (L + 1, n): the largest coordinates by mean |normalised| value at the
        sink tokens, that value, and the same at the other tokens. ``peak`` (L + 1,): largest |coordinate| of the first
        sink over the median of the others' largest. ``norm`` (L + 1,): the same for the norm.
    """
    scaled = normalised(residual)
    at_sinks = scaled[:, sinks].mean(axis=1)
    dims = np.argsort(-at_sinks, axis=-1, kind="stable")[:, :TOP_DIMENSIONS]
    largest = np.abs(np.asarray(residual, dtype=np.float64)).max(axis=-1)
    norms = np.sqrt((np.asarray(residual, dtype=np.float64) ** 2).sum(axis=-1))
    first = int(sinks[0])
    return {
        "dims": dims,
        "at_sinks": np.take_along_axis(at_sinks, dims, axis=-1),
        "at_others": np.take_along_axis(scaled[:, others].mean(axis=1), dims, axis=-1),
        "peak": largest[:, first] / np.maximum(np.median(largest[:, others], axis=-1), _TINY),
        "norm": norms[:, first] / np.maximum(np.median(norms[:, others], axis=-1), _TINY),
    }


@dataclass(frozen=True)
class SinkTokens(Probe):
    """What marks sink tokens: drained values per head, and massive activations per layer.

    The score of a head is its drain ratio: the median norm of W_O v over ordinary tokens, divided by that of the
    first token. It says how little the head adds when it rests on its sink. A head is selected if it is drained
    above ``threshold`` *and* gives the first token more than ``sink_mass`` of its attention.

    Parameters
    ----------
    threshold, sink_mass
        Least drain ratio and least a_0 of a selected head.
    later_threshold, min_share
        A later token is a sink token if it receives more than ``later_threshold`` from at least ``min_share`` of all
        heads.
    min_queries
        Queries that must be able to see such a token.
    tau
        Least mean |RMS-normalised| value of a massive dimension at sink tokens. By default 0.3125 √D, which is VAR's
        20 at Llama-2-7B's width and scales with the largest possible value, √D.
    consistency
        Least share of texts in which a massive dimension is among the largest of its layer.
    """

    name: ClassVar[str] = "sink-tokens"
    data: ClassVar[str] = "texts"

    threshold: float = 2.0
    sink_mass: float = 0.3
    later_threshold: float = 0.1
    min_share: float = 0.05
    min_queries: int = 16
    tau: float | None = None
    consistency: float = 0.9

    def requests(self, spec: Any) -> list[Request]:
        """Ask for column means, value norms before and behind the output projection, and the residual stream."""
        return [
            *sink_requests(),
            ValueNorms(),
            ValueNorms(through_output=True, name="output_norms"),
            Residual(),
        ]

    def observe(self, run: Any, sample: Any) -> Observation:
        """Sink tokens of one text, drain by head, massive dimensions by layer."""
        means = take(run["received_mean"], "layer", "head", "key")
        values = take(run["value_norms"], "layer", "head", "key")
        outputs = take(run["output_norms"], "layer", "head", "key")
        residual = take(run["residual"], "layer", "query", "dim")
        first = min(run.prompt.regions["bos"])
        sinks, share = sink_positions(
            means,
            first,
            later_threshold=self.later_threshold,
            min_share=self.min_share,
            min_queries=self.min_queries,
        )
        others = np.setdiff1d(np.arange(first, means.shape[-1]), sinks)
        if not len(others):
            others = sinks
        tokens = run.prompt.tokens
        norms = np.sqrt((residual.astype(np.float64) ** 2).sum(axis=-1))
        ratio = norms[:, sinks] / np.maximum(np.median(norms[:, others], axis=-1, keepdims=True), _TINY)
        return {
            "layers": layers_of(run["received_mean"]),
            "score": drain(outputs, first, others),
            "null": drain(outputs, others, others).mean(axis=-1),
            "value_drain": drain(values, first, others),
            "sink_mass": means[..., first].astype(np.float64),
            **massive_dimensions(residual, sinks, others),
            "width": np.asarray(residual.shape[-1]),
            "token_at": sinks,
            "token_id": np.array([run.prompt.ids[at] for at in sinks], dtype=np.int64),
            "token": np.array([str(tokens[at]) for at in sinks], dtype=np.str_),
            "token_share": share[sinks],
            "token_mean": means[..., sinks].mean(axis=(0, 1)).astype(np.float64),
            "token_drain": np.median(drain(outputs, sinks, others), axis=(0, 1)),
            "token_norm": ratio.max(axis=0),
        }

    def summarise(self, observations: list[tuple[SampleMeta, Observation]], context: Context) -> HeadScores:
        """Drain ratio by head, sink tokens by text form, massive dimensions and residual peaks by layer."""
        some(observations, self.name)
        sources = sources_of(observations)
        mass = mean_map(stack(observations, "sink_mass", context))
        table, notes = head_table(
            stack(observations, "score", context),
            sources,
            null=stack(observations, "null", context),
            threshold=self.threshold,
            extra={"value_drain": mean_map(stack(observations, "value_drain", context)), "sink_mass": mass},
            seed=context.seed,
        )
        table = table.assign(selected=table["selected"] & (mass.ravel() > self.sink_mass))
        width = int(observations[0][1]["width"])
        tau = 0.3125 * math.sqrt(width) if self.tau is None else self.tau
        dimensions = dimension_table(observations, tau=tau, consistency=self.consistency)
        said = (
            f"Massive dimensions (above {tau:.1f} of at most {math.sqrt(width):.1f}): "
            f"{_names(dimensions, 'massive')}. That tell sinks from other tokens: {_names(dimensions, 'separates')}."
        )
        details = {
            "tokens": token_table(observations),
            "dimensions": dimensions,
            "residual": residual_table(observations, sources, seed=context.seed),
        }
        return context.scores(self, table, details, [said, *notes])


def _names(dimensions: pd.DataFrame, column: str) -> str:
    """Dimensions marked in any layer, the largest first."""
    by_size = dimensions[dimensions[column]].groupby("dimension")["at_sinks"].max().sort_values(ascending=False)
    return ", ".join(map(str, by_size.index)) or "none"


def token_table(observations: Sequence[tuple[SampleMeta, Observation]]) -> pd.DataFrame:
    """Sink tokens by text form: how often they are sinks, and how they look there; first tokens before later ones.

    Without a token that starts every text any token can come first; these share one row.
    """
    import pandas as pd

    parts = []
    for meta, observation in observations:
        size = len(observation["token_at"])
        place = np.where(np.arange(size) == 0, "first", "later")
        columns = {name: observation[f"token_{name}"] for name in ("share", "mean", "drain", "norm")}
        parts.append(
            pd.DataFrame({"token": observation["token"].astype(str), "place": place, "text": meta.id, **columns})
        )
    every = pd.concat(parts, ignore_index=True)
    first = every["place"] == "first"
    forms = every.loc[first, "token"].nunique()
    if forms > 1:
        every.loc[first, "token"] = f"(any first token, {forms} forms)"
    grouped = every.groupby(["place", "token"], as_index=False)
    found = grouped.agg(
        texts=("text", "nunique"),
        occurrences=("text", "size"),
        head_share=("share", "mean"),
        received=("mean", "mean"),
        drain=("drain", "mean"),
        norm_ratio=("norm", "mean"),
    )
    order = ["place", "texts", "head_share", "token"]
    return found.sort_values(order, ascending=[True, False, False, True], ignore_index=True)


def dimension_table(
    observations: Sequence[tuple[SampleMeta, Observation]], *, tau: float, consistency: float
) -> pd.DataFrame:
    """Dimensions of the residual stream that are largest at sink tokens, by layer; ``layer`` 0 is the embedding.

    ``separates`` marks massive dimensions whose mean at other tokens lies below ``tau``: only these tell sinks from
    other tokens by VAR's rule, because some models have a dimension that is large at every token.
    """
    import pandas as pd

    parts = []
    for _, observation in observations:
        layer, _ = np.indices(observation["dims"].shape)
        parts.append(
            pd.DataFrame(
                {
                    "layer": layer.ravel(),
                    "dimension": observation["dims"].ravel(),
                    "at_sinks": observation["at_sinks"].ravel(),
                    "at_others": observation["at_others"].ravel(),
                }
            )
        )
    grouped = pd.concat(parts, ignore_index=True).groupby(["layer", "dimension"], as_index=False)
    found = grouped.agg(texts=("at_sinks", "size"), at_sinks=("at_sinks", "mean"), at_others=("at_others", "mean"))
    share = found["texts"] / len(observations)
    massive = (share >= consistency) & (found["at_sinks"] > tau)
    found = found.assign(share=share, massive=massive, separates=massive & (found["at_others"] < tau))
    found = found[found["share"] >= consistency]
    return found.drop(columns="texts").sort_values(
        ["massive", "layer", "at_sinks"], ascending=[False, True, False], ignore_index=True
    )


def residual_table(
    observations: Sequence[tuple[SampleMeta, Observation]], sources: Sequence[str], *, seed: int = 0
) -> pd.DataFrame:
    """Residual peak and norm of the first token against the others, by layer, with intervals over texts."""
    import pandas as pd

    columns: dict[str, NDArray[Any]] = {}
    for name in ("peak", "norm"):
        found = bootstrap(np.stack([observation[name] for _, observation in observations]), sources, seed=seed)
        columns |= {f"{name}_ratio": found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    return pd.DataFrame({"layer": np.arange(len(columns["peak_ratio"])), **columns})
