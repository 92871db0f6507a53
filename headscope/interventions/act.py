"""ACT: attention calibration. Attention that lies on sinks in mid-text is given to the other tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from headscope.interventions.base import Heads, Method
from headscope.interventions.checks import as_heads, as_layers, number, on

if TYPE_CHECKING:
    from headscope.attention.edits import Edit

LEFT_OUT = (0, 1, -1)
"""Layers that the paper leaves alone; −1 is the last."""


@dataclass(frozen=True)
class ACT(Method):
    """Attention calibration (Yu et al. 2024, "Unveiling and harnessing hidden attention sinks", arXiv 2406.15765).

    A key is a sink of a head if its mean attention from the queries that can see it is above ``threshold``. The first
    sink of each head, most often the first token, stays as it is; with S the others and s = Σ_{k in S} A[q, k], in
    every row

    A'[q, k] = beta · A[q, k] for k in S, and A[q, k] · (1 + (1 − beta) · s / (1 − s)) for all other keys.

    Rows keep their sum. Sinks are found once, in the prefill, and stay for all that is generated.

    Parameters
    ----------
    heads
        (layer, head) pairs, as ``calibrate_heads`` finds them, or ``"all"``.
    threshold
        Least mean attention of a sink.
    beta
        What a sink keeps; 1 is neutral.
    layers
        Layers to act in. By default named heads of any layer, and with ``"all"`` all but layers 0, 1 and the last.
    stack
        Which attention; the model's own by default.
    """

    name: ClassVar[str] = "act"

    heads: Heads = "all"
    threshold: float = 0.1
    beta: float = 0.4
    layers: tuple[int, ...] | None = None
    stack: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", as_heads(self.heads, "ACT"))
        object.__setattr__(self, "threshold", number("ACT", "threshold", self.threshold, high=1, above=True))
        object.__setattr__(self, "beta", number("ACT", "beta", self.beta))
        object.__setattr__(self, "layers", as_layers(self.layers, "ACT"))

    @property
    def neutral(self) -> bool:
        """Whether beta is 1."""
        return self.beta == 1

    def neutralised(self) -> Self:
        """Return the method with beta 1."""
        return replace(self, beta=1.0)

    def edits(self, model: Any) -> tuple[Edit, ...]:
        """Return one transfer of weight from the sinks that are found."""
        from headscope.attention.edits import AttentionEdit, ColumnSinks, Group, Transfer

        heads = on(self.heads, model, "ACT", layers=self.layers, skip=LEFT_OUT, stack=self.stack)
        sinks = Group("sinks", ColumnSinks(self.threshold, skip_first=True))
        return (AttentionEdit(heads, (sinks,), Transfer(self.beta), stack=self.stack),)
