"""Attention knock-out: cut the way from some tokens to others in a window of layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from headscope.errors import RequestError
from headscope.interventions.base import Heads, Method
from headscope.interventions.checks import Keys, as_heads, as_keys, as_layers, on

if TYPE_CHECKING:
    from headscope.attention.edits import Edit


@dataclass(frozen=True)
class KnockOut(Method):
    """Block attention from queries in ``target`` to keys in ``source`` (Geva et al. 2023, arXiv 2304.14767).

    Blocked entries are exactly 0 and the rest of the row is renormalised, as a logit of −∞ would do. A row that sees
    nothing but ``source`` keeps its attention.

    Parameters
    ----------
    source
        What is not to be read: regions of the prompt and token positions; ``"last"`` is the newest token.
    target
        Who may not read it: regions, ``"last"`` or ``"generated"``; ``"all"`` by default. ``"last"`` is the row that
        predicts the next token; while text is generated, each new token in its turn.
    layers
        In which layers; in all by default. See ``window``.
    heads
        (layer, head) pairs, or ``"all"``.
    active
        False leaves the method out, for the control row of evaluations.
    stack
        Which attention; the model's own by default.
    """

    name: ClassVar[str] = "knockout"

    source: Keys = ()
    target: tuple[str, ...] = ("all",)
    layers: tuple[int, ...] | None = None
    heads: Heads = "all"
    active: bool = True
    stack: str | None = None

    def __post_init__(self) -> None:
        target = as_keys(self.target, "KnockOut", "target")
        positions = [key for key in target if not isinstance(key, str)]
        if positions:
            raise RequestError(
                f"KnockOut(target=…): {positions[0]} is a position. Query rows are named by regions: give the prompt "
                "one that holds it."
            )
        object.__setattr__(self, "source", as_keys(self.source, "KnockOut", "source"))
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "layers", as_layers(self.layers, "KnockOut"))
        object.__setattr__(self, "heads", as_heads(self.heads, "KnockOut"))

    @property
    def neutral(self) -> bool:
        """Whether it is left out."""
        return not self.active

    def neutralised(self) -> Self:
        """Return the method, left out."""
        return replace(self, active=False)

    def edits(self, model: Any) -> tuple[Edit, ...]:
        """Return one edit that hides the source for each named target."""
        from headscope.attention import edits

        heads = on(self.heads, model, "KnockOut", layers=self.layers, stack=self.stack)
        if not self.active:
            return ()
        source = tuple(-1 if key == "last" else key for key in self.source)
        rows = [None] if "all" in self.target else list(self.target)
        return tuple(edits.KnockOut(heads, source, queries=row, stack=self.stack) for row in rows)


def window(model: Any, centre: int, size: int = 9, stack: str | None = None) -> tuple[int, ...]:
    """Return ``size`` layers around ``centre``, fewer at the ends of the model.

    Raises
    ------
    RequestError
        If there is no such layer, or no size.
    """
    layers = sorted(model.sites.stack(stack))
    if centre not in layers or size < 1:
        raise RequestError(
            f"window(centre={centre}, size={size}): give a layer from {layers[0]} to {layers[-1]} and at least one."
        )
    start = centre - size // 2
    return tuple(layer for layer in layers if start <= layer < start + size)
