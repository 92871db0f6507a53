"""VAR: attention that rests on sinks is given to the other tokens of a region, in rows that look at the region."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from headscope.errors import DataError, RequestError
from headscope.interventions.base import Heads, Method
from headscope.interventions.checks import as_heads, as_layers, number, on

if TYPE_CHECKING:
    import pandas as pd

    from headscope.attention.edits import Edit
    from headscope.models.prompt import Prompt

FIRST_LAYER = 2
"""Layers below it have no massive dimensions yet, and the paper leaves them alone."""

LENGTH = 128
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
        region: Any = self.region
        names = [region] if isinstance(region, str) else list(region)
        if len(names) != 1 or not isinstance(names[0], str) or not names[0]:
            raise RequestError(f"VAR(region={region!r}): name one region of the prompt.")
        object.__setattr__(self, "region", names[0])
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
        fields: dict[str, Any] = {"dimensions": found.dimensions, "region": region, "tau": found.tau}
        return cls(**{**fields, **options})


@dataclass(frozen=True, eq=False)
class SinkDimensions:
    """Dimensions of the residual stream that mark sinks.

    Parameters
    ----------
    dimensions
        Those that do in most layers from the third on, the clearest first.
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
    """Learn which dimensions of the residual stream mark sinks, and above which value.

    Sink tokens are the first one and those that receive much attention, as the probe ``sink-tokens`` sees them. A
    dimension is kept if it is among the largest at sink tokens in most texts, and if its value at the first token lies
    above tau and that of other tokens below, each in more than half of the layers that VAR acts in.

    Parameters
    ----------
    prompts
        Texts to look at; by default ``n`` documents of several domains.
    tau
        By default 0.3125 √D, which is 20 at the width of Llama-2-7B and the same part of the largest possible value
        elsewhere; or more, where a dimension is large at every token and larger at sinks: then the geometric mean of
        its value at the first token and the value that 99 % of the tokens that are no sinks stay below.
    consistency
        Least share of texts in which the dimension is among the largest.
    seed
        Of the documents.

    Raises
    ------
    DataError
        If there is no prompt, no such dimension, or the model is too shallow to have any.
    """
    from headscope.probes.base import SampleMeta
    from headscope.probes.sink_tokens import SinkTokens, dimension_table

    if prompts is None:
        from headscope.data import texts

        samples = texts(model, n, _length(model), seed)
        prompts = [samples[i].prompt(model) for i in range(len(samples))]
    if not prompts:
        raise DataError("Sink dimensions are learned on prompts, and there is none: pass some, or leave out prompts=.")
    if model.spec.n_layers <= FIRST_LAYER:
        raise DataError(
            f"{model.name} has {model.spec.n_layers} layers; massive dimensions grow in the third or later."
        )
    probe = SinkTokens()
    wanted = probe.requests(model.spec)
    seen, first, others = [], [], []
    for index, prompt in enumerate(prompts):
        run = model.run(model.batch([prompt]).prompts[0], wanted, logits=False)
        observed = probe.observe(run, None)
        seen.append((SampleMeta(index, str(index), str(index), "texts", {}), observed))
        at_first, at_others = _values(run, observed["token_at"])
        first.append(at_first)
        others.append(at_others)
    peak, crowd = np.median(first, axis=0), np.median(others, axis=0)
    if tau is None:
        clearest = int((np.median(peak, axis=0) / np.median(crowd, axis=0).clip(min=1)).argmax())
        middle = math.sqrt(float(np.median(peak[:, clearest])) * float(np.median(crowd[:, clearest])))
        tau = max(0.3125 * math.sqrt(peak.shape[1]), middle)
    tau = number("sink_dimensions", "tau", tau, above=True)
    table = dimension_table(seen, tau=tau, consistency=consistency)
    inner = table[table["layer"].between(FIRST_LAYER, model.spec.n_layers - 1)]
    consistent = np.bincount(inner["dimension"], minlength=peak.shape[1]) > len(peak) / 2
    marks = ((peak > tau) & (crowd < tau)).mean(axis=0) > 0.5
    kept = np.flatnonzero(consistent & marks)
    if not len(kept):
        raise DataError(
            f"No dimension of {model.name}'s residual stream tells sinks from other tokens at tau={tau:.3g} in most "
            "layers. Pass another tau=, or name dimensions yourself."
        )
    clear = np.median(peak / crowd.clip(min=1e-9), axis=0)
    order = sorted(kept.tolist(), key=lambda d: -clear[d])
    return SinkDimensions(tuple(order), tau, table, len(seen))


def _values(run: Any, sinks: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return normalised values at the first sink, and what 99 % of the other tokens stay below: (layers, D) each."""
    from headscope.probes.sink_tokens import normalised
    from headscope.probes.tables import take

    x = normalised(take(run["residual"], "layer", "query", "dim")[FIRST_LAYER:-1])
    rest = np.setdiff1d(np.arange(sinks[0], x.shape[1]), sinks)
    return x[:, sinks[0]], np.quantile(x[:, rest if len(rest) else sinks], 0.99, axis=1)


def _length(model: Any) -> int:
    return LENGTH if model.spec.n_ctx is None else min(LENGTH, int(model.spec.n_ctx))
