"""PAI: raise the logits of a region by a part of their size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from headscope.errors import RequestError
from headscope.interventions.base import Heads, Method
from headscope.interventions.checks import Keys, as_heads, as_keys, as_layers, number, on

if TYPE_CHECKING:
    from headscope.attention.edits import Edit

LEFT_OUT = (0, 1)
"""Layers that the paper leaves alone."""


@dataclass(frozen=True)
class PAI(Method):
    """Pay attention to image (Liu et al. 2024, arXiv 2407.21771): logits s of the region become s + alpha · |s|.

    Parameters
    ----------
    heads
        (layer, head) pairs, or ``"all"``, as published.
    region
        What to attend to: a region of the prompt, or several, and token positions.
    alpha
        At least 0; 0 is neutral.
    layers
        Layers to act in. By default named heads of any layer, and with ``"all"`` all but layers 0 and 1.
    queries
        ``"all"`` rows, so that reading a text and generating it are the same, or, as published, only the ``"last"``
        row of the prompt and the row of each new token.
    stack
        Which attention; the model's own by default.
    """

    name: ClassVar[str] = "pai"

    heads: Heads = "all"
    region: Keys = ()
    alpha: float = 0.2
    layers: tuple[int, ...] | None = None
    queries: Literal["all", "last"] = "all"
    stack: str | None = None

    def __post_init__(self) -> None:
        if self.queries not in ("all", "last"):
            raise RequestError(f"PAI(queries={self.queries!r}): choose all or last.")
        object.__setattr__(self, "heads", as_heads(self.heads, "PAI"))
        object.__setattr__(self, "region", as_keys(self.region, "PAI", "region"))
        object.__setattr__(self, "alpha", number("PAI", "alpha", self.alpha))
        object.__setattr__(self, "layers", as_layers(self.layers, "PAI"))

    @property
    def neutral(self) -> bool:
        """Whether alpha is 0."""
        return self.alpha == 0

    def neutralised(self) -> Self:
        """Return the method with alpha 0."""
        return replace(self, alpha=0.0)

    def edits(self, model: Any) -> tuple[Edit, ...]:
        """Return one boost of the region's logits."""
        from headscope.attention.edits import LogitEdit

        heads = on(self.heads, model, "PAI", layers=self.layers, skip=LEFT_OUT, stack=self.stack)
        rows = None if self.queries == "all" else self.queries
        return (LogitEdit(heads, boost=self.alpha, regions=self.region, queries=rows, stack=self.stack),)
