"""Sink heads: heads that rest their attention on the first token, or on a few later ones.

The importance of a key is the mean attention it receives from the queries that can see it, a_k (Yu et al. 2024,
"Unveiling and Harnessing Hidden Attention Sinks"; Gu et al. 2025, "When Attention Sink Emerges"). A head is a sink
head if a_0 > 0.3; a later key is a sink of a head if a_k > 0.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headscope.attention.requests import Mass, Received, Request
from headscope.probes.base import Context, Observation, Probe, SampleMeta
from headscope.probes.statistics import Floats, bootstrap, head_table
from headscope.probes.tables import by_factor, contrast, layers_of, mean_map, some, sources_of, stack, take

if TYPE_CHECKING:
    import pandas as pd

    from headscope.probes.scores import HeadScores

PREFIX = 64
"""Context of the published count of sink heads (sail-sg/Attention-Sink)."""
MAX_LATER = 2048
"""Later sinks kept per sample, the strongest first."""


def sink_requests() -> list[Request]:
    """Return column means and column sums of all heads, shared by the two sink probes."""
    return [Received(mean=True, name="received_mean"), Received()]


def eligible_keys(length: int, first: int, min_queries: int) -> NDArray[np.int64]:
    """Positions behind ``first`` that at least ``min_queries`` queries can see in a causal model."""
    return np.arange(first + 1, max(first + 1, length - min_queries + 1))


def sink_masses(
    means: NDArray[np.floating[Any]],
    sums: NDArray[np.floating[Any]],
    first: int,
    *,
    later_threshold: float = 0.1,
    min_queries: int = 16,
) -> dict[str, NDArray[Any]]:
    """Sinks of all heads on one text.

    Parameters
    ----------
    means, sums
        (L, H, T) mean and total attention that each key receives from the queries that can see it.
    first
        Position of the first token that can be attended to.
    later_threshold
        A later key is a sink above this mean.
    min_queries
        A key seen by fewer queries is never a later sink: the last keys are seen by hardly any but themselves.

    Returns
    -------
    dict
        ``score`` (L, H): a_0. ``null`` (L, H): expectation of a_k over a random eligible later key. ``total`` (L, H):
        share of all attention on the first and the later sinks. ``later`` (L, H): number of later sinks.
        ``later_at`` (K, 3): layer index, head, key of each later sink; ``later_mean`` (K,): its a_k.
    """
    means, sums = np.asarray(means, dtype=np.float64), np.asarray(sums, dtype=np.float64)
    length = means.shape[-1]
    keys = eligible_keys(length, first, min_queries)
    behind = means[..., keys]
    is_sink = behind > later_threshold
    rows = np.maximum(sums.sum(axis=-1), 1e-30)
    at = np.argwhere(is_sink)
    strength = behind[is_sink]
    order = np.argsort(-strength, kind="stable")[:MAX_LATER]
    at[:, 2] = keys[at[:, 2]] if len(keys) else at[:, 2]
    return {
        "score": means[..., first],
        "null": behind.mean(axis=-1) if len(keys) else np.zeros(means.shape[:2]),
        "total": (sums[..., first] + (sums[..., keys] * is_sink).sum(axis=-1)) / rows,
        "later": is_sink.sum(axis=-1).astype(np.float64),
        "later_at": at[order],
        "later_mean": strength[order],
    }


@dataclass(frozen=True)
class SinkHeads(Probe):
    """Heads that give the first token more than ``threshold`` of the attention of the queries that can see it.

    Parameters
    ----------
    threshold
        Least a_0 of a sink head (sail-sg: 0.3, on 64 tokens; the column ``first_64`` holds that quantity whatever
        the length of the texts).
    later_threshold
        Least a_k of a later sink (ACT: 0.1).
    min_queries
        Queries that must be able to see a key before it can be a later sink.

    Notes
    -----
    The null is a random later position. ``details["domains"]`` compares domains of text: a head with much of its
    mass on the sink in one domain and little in another is a candidate of active-dormant behaviour (Guo et al.
    2024); whether it *matters* there is what ``headscope.probes.active_dormant`` measures.
    """

    name: ClassVar[str] = "sinks"
    data: ClassVar[str] = "texts"

    threshold: float = 0.3
    later_threshold: float = 0.1
    min_queries: int = 16

    def requests(self, spec: Any) -> list[Request]:
        """Ask for column means and sums, and the mass of the first token by query."""
        return [*sink_requests(), Mass(("bos",), name="sink_mass")]

    def observe(self, run: Any, sample: Any) -> Observation:
        """Sinks of one text, see ``sink_masses``."""
        first = min(run.prompt.regions["bos"])
        mass = take(run["sink_mass"], "layer", "head", "query", "region")[..., 0].astype(np.float64)
        found = sink_masses(
            take(run["received_mean"], "layer", "head", "key"),
            take(run["received"], "layer", "head", "key"),
            first,
            later_threshold=self.later_threshold,
            min_queries=self.min_queries,
        )
        tokens = run.prompt.tokens
        return {
            "layers": layers_of(run["received"]),
            **found,
            "first_64": mass[..., first : first + PREFIX].mean(axis=-1),
            "later_token": np.array([str(tokens[key]) for key in found["later_at"][:, 2]], dtype=np.str_),
        }

    def summarise(self, observations: list[tuple[SampleMeta, Observation]], context: Context) -> HeadScores:
        """Mean over texts, later sinks by head, and initial sink mass by domain."""
        some(observations, self.name)
        values = stack(observations, "score", context)
        table, notes = head_table(
            values,
            sources_of(observations),
            null=stack(observations, "null", context),
            threshold=self.threshold,
            extra={
                "total": mean_map(stack(observations, "total", context)),
                "later": mean_map(stack(observations, "later", context)),
                "first_64": mean_map(stack(observations, "first_64", context)),
            },
            seed=context.seed,
        )
        chosen = table["selected"].to_numpy(dtype=bool).reshape(values.shape[1:])
        details = {
            "by_factor": by_factor(observations, values, chosen, ("length", "domain")),
            "later": later_sinks(observations),
        }
        domains = domain_table(observations, values, seed=context.seed)
        if len(domains):
            details["domains"] = domains
        share = float(np.nanmean(mean_map(stack(observations, "first_64", context)) > self.threshold))
        notes = [f"{share:.1%} of all heads pass {self.threshold:g} by the {PREFIX}-token convention.", *notes]
        return context.scores(self, table, details, notes)


def later_sinks(observations: Sequence[tuple[SampleMeta, Observation]]) -> pd.DataFrame:
    """Later sinks by head and token: in how many texts, at which positions, how strong; the commonest first."""
    import pandas as pd

    parts = []
    for meta, observation in observations:
        at = observation["later_at"]
        if len(at):
            parts.append(
                pd.DataFrame(
                    {
                        "layer": observation["layers"][at[:, 0]],
                        "head": at[:, 1],
                        "token": observation["later_token"].astype(str),
                        "sample": meta.id,
                        "key": at[:, 2],
                        "mean": observation["later_mean"],
                    }
                )
            )
    columns = ["layer", "head", "token", "texts", "sinks", "earliest", "mean"]
    if not parts:
        return pd.DataFrame({name: pd.Series(dtype="float64") for name in columns})
    grouped = pd.concat(parts, ignore_index=True).groupby(["layer", "head", "token"], as_index=False)
    found = grouped.agg(
        texts=("sample", "nunique"), sinks=("key", "size"), earliest=("key", "min"), mean=("mean", "mean")
    )
    order = ["texts", "mean", "layer", "head", "token"]
    return found.sort_values(order, ascending=[False, False, True, True, True], ignore_index=True)[columns]


def domain_table(
    observations: Sequence[tuple[SampleMeta, Observation]], values: Floats, *, seed: int = 0
) -> pd.DataFrame:
    """Compare the initial sink mass of every head in every domain with that in the others.

    Documents are the clusters of both intervals. Empty with fewer than two domains.

    Parameters
    ----------
    values
        (N, L, H) sink mass.
    """
    import pandas as pd

    names = np.array([str(meta.factors.get("domain", "")) for meta, _ in observations])
    sources = sources_of(observations)
    domains = sorted(set(names) - {""})
    if len(domains) < 2:
        return pd.DataFrame()
    layer, head = np.divmod(np.arange(values[0].size), values.shape[2])
    parts = []
    for domain in domains:
        inside = names == domain
        here = [source for source, kept in zip(sources, inside, strict=True) if kept]
        mass = bootstrap(values[inside], here, seed=seed)
        difference, low, high = contrast(values, sources, inside, seed=seed)
        parts.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "head": head,
                    "domain": domain,
                    "sink_mass": mass.mean.ravel(),
                    "ci_low": mass.low.ravel(),
                    "ci_high": mass.high.ravel(),
                    "difference": difference.ravel(),
                    "difference_low": low.ravel(),
                    "difference_high": high.ravel(),
                    "n": mass.n.ravel(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True).sort_values(["layer", "head", "domain"], ignore_index=True)
