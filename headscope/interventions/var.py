"""VAR: attention that rests on sinks is given to the other tokens of a region, in rows that look at the region."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from headscope.errors import DataError, RequestError
from headscope.interventions.base import Heads, Method
from headscope.interventions.checks import as_heads, as_layers, number, on

if TYPE_CHECKING:
    import pandas as pd

    from headscope.attention.edits import Edit
    from headscope.models.prompt import Prompt

FIRST_LAYER = 2
"""Layers below it have no massive dimensions yet, and the paper leaves them alone."""

LENGTH = 256
"""Tokens of the texts that dimensions are learned on, where none are given."""


@dataclass(frozen=True)
class VAR(Method):
    """Visual attention redistribution (Kang et al. 2025, "See what you are told", arXiv 2503.03321), on any region.

    At the input of a layer, normalised to a root mean square of 1, a token is a sink if one of ``dimensions`` is
    above ``tau`` in absolute value. With I the mass of the region in a row and V that of the sinks inside it, rows of
    V > 0, V <= max_sink_portion · I and I >= min_total are edited: sinks, inside and outside, keep ``keep_fraction`` of
    their attention, and what is freed goes to the region's other tokens in proportion to theirs. Rows keep their sum.

    Parameters
    ----------
    dimensions
        Massive dimensions of the residual stream; see ``sink_dimensions`` and ``VAR.learn``.
    region
        A region of the prompt, such as the image.
    heads
        (layer, head) pairs, or ``"all"``: rows are chosen as they come, as published.
    keep_fraction
        p of the published code, which is 1 − p of the paper. 1 is neutral.
    max_sink_portion
        ρ of the published code, which is 1 − ρ of the paper: the largest share of the region's mass on its sinks.
    min_total
        ``summ`` of the published code: the least mass of the region.
    tau
        Least absolute value of a sink; 20 suits the width of Llama-2-7B and ``sink_dimensions`` scales it.
    layers
        Layers to act in. By default named heads of any layer, and with ``"all"`` all but layers 0 and 1.
    stack
        Which attention; the model's own by default.
    """

    name: ClassVar[str] = "var"

    dimensions: tuple[int, ...]
    region: str
    heads: Heads = "all"
    keep_fraction: float = 0.6
    max_sink_portion: float = 0.5
    min_total: float = 0.2
    tau: float = 20.0
    layers: tuple[int, ...] | None = None
    stack: str | None = None

    def __post_init__(self) -> None:
        given: Any = self.dimensions
        dimensions = tuple(dict.fromkeys(int(d) for d in ((given,) if isinstance(given, int) else given)))
        if not dimensions or min(dimensions) < 0:
            raise RequestError(
                "VAR needs dimensions= of the residual stream that mark sinks: VAR.learn(model, region) finds them."
            )
        if not isinstance(self.region, str) or not self.region:
            raise RequestError(f"VAR(region={self.region!r}): name one region of the prompt.")
        object.__setattr__(self, "dimensions", dimensions)
        object.__setattr__(self, "heads", as_heads(self.heads, "VAR"))
        for name in ("keep_fraction", "max_sink_portion", "min_total"):
            object.__setattr__(self, name, number("VAR", name, getattr(self, name), high=1))
        object.__setattr__(self, "tau", number("VAR", "tau", self.tau, above=True))
        object.__setattr__(self, "layers", as_layers(self.layers, "VAR"))

    @property
    def neutral(self) -> bool:
        """Whether sinks keep all."""
        return self.keep_fraction == 1

    def neutralised(self) -> Self:
        """Return the method with a keep fraction of 1."""
        return replace(self, keep_fraction=1.0)

    def edits(self, model: Any) -> tuple[Edit, ...]:
        """Return one redistribution in the rows behind the region."""
        from headscope.attention.edits import AttentionEdit, Group, Redistribute, ResidualPeaks

        heads = on(self.heads, model, "VAR", layers=self.layers, skip=range(FIRST_LAYER), stack=self.stack)
        groups = (
            Group("sinks outside", ResidualPeaks(self.dimensions, self.tau, outside=self.region)),
            Group("sinks inside", ResidualPeaks(self.dimensions, self.tau, within=self.region)),
            Group("region", (self.region,)),
        )
        rule = Redistribute(self.keep_fraction, self.max_sink_portion, self.min_total)
        return (AttentionEdit(heads, groups, rule, queries=f"after:{self.region}", stack=self.stack),)

    @classmethod
    def learn(cls, model: Any, region: str, prompts: Sequence[Prompt | str] | None = None, **options: Any) -> Self:
        """Return the method with dimensions and tau as ``sink_dimensions(model, prompts)`` finds them.

        Parameters
        ----------
        options
            Further fields, such as ``heads`` and ``keep_fraction``.
        """
        found = sink_dimensions(model, prompts)
        return cls(**{"dimensions": found.dimensions, "region": region, "tau": found.tau} | options)


@dataclass(frozen=True, eq=False)
class SinkDimensions:
    """Dimensions of the residual stream that mark sinks.

    Parameters
    ----------
    dimensions
        Those that do in most layers from the third on, the largest first.
    tau
        The least absolute value that counts as a peak.
    table
        By layer and dimension: ``at_sinks``, ``at_others``, mean absolute values at sink tokens and at others,
        ``share`` of texts, ``massive``, ``separates``.
    n
        Number of texts.
    """

    dimensions: tuple[int, ...]
    tau: float
    table: pd.DataFrame = field(repr=False)
    n: int


def sink_dimensions(
    model: Any,
    prompts: Sequence[Prompt | str] | None = None,
    *,
    n: int = 100,
    tau: float | None = None,
    consistency: float = 0.9,
    seed: int = 0,
) -> SinkDimensions:
    """Learn which dimensions of the residual stream mark sinks, as the probe ``sink-tokens`` sees them.

    Sink tokens are the first one and those that receive much attention. A dimension is kept if at a layer's input it
    is among the largest at sink tokens in most texts, is above ``tau`` there and below it at other tokens, and that
    in more than half of the layers that VAR acts in.

    Parameters
    ----------
    prompts
        Texts to look at; by default ``n`` documents of several domains.
    tau
        By default 0.3125 √D: 20 at the width of Llama-2-7B, and the same part of the largest possible value elsewhere.
    consistency
        Least share of texts in which the dimension is among the largest.
    seed
        Of the documents.

    Raises
    ------
    DataError
        If there is no prompt, or no such dimension.
    """
    from headscope.probes.base import SampleMeta
    from headscope.probes.sink_tokens import SinkTokens, dimension_table

    if prompts is None:
        from headscope.data import texts

        samples = texts(model, n, _length(model), seed)
        prompts = [samples[i].prompt(model) for i in range(len(samples))]
    if not prompts:
        raise DataError("Sink dimensions are learned on prompts, and there is none: pass some, or leave out prompts=.")
    probe = SinkTokens()
    wanted = probe.requests(model.spec)
    seen = []
    for index, prompt in enumerate(prompts):
        given = model.batch([prompt]).prompts[0]
        run = model.run(given, wanted, logits=False)
        seen.append((SampleMeta(index, str(index), str(index), "texts", {}), probe.observe(run, None)))
    width = int(seen[0][1]["width"])
    tau = 0.3125 * math.sqrt(width) if tau is None else number("sink_dimensions", "tau", tau, above=True)
    table = dimension_table(seen, tau=tau, consistency=consistency)
    layers = model.spec.n_layers - FIRST_LAYER
    inner = table[table["separates"] & table["layer"].between(FIRST_LAYER, model.spec.n_layers - 1)]
    by_dimension = inner.groupby("dimension")["at_sinks"].agg(["size", "max"])
    kept = by_dimension[by_dimension["size"] > layers / 2].sort_values("max", ascending=False)
    if kept.empty:
        raise DataError(
            f"No dimension of {model.name}'s residual stream marks sinks above tau={tau:.3g} in most layers. Lower "
            "tau=, or name dimensions yourself."
        )
    return SinkDimensions(tuple(int(d) for d in kept.index), tau, table, len(seen))


def _length(model: Any) -> int:
    return LENGTH if model.spec.n_ctx is None else min(LENGTH, int(model.spec.n_ctx))
