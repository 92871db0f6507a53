"""SpotLight: see to it that every row gives a region its share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from headscope.interventions.base import Heads, Method
from headscope.interventions.checks import Keys, as_heads, as_keys, number, on

if TYPE_CHECKING:
    from headscope.attention.edits import Edit


@dataclass(frozen=True)
class SpotLight(Method):
    """Dynamic attention steering (Venkateswaran and Contractor 2025, "Spotlight your instructions", arXiv 2505.12025).

    With ψ(q) the attention of a row to the region, rows of 0 < ψ(q) < psi have the region's weights multiplied by
    psi / ψ(q) and are renormalised; other rows stay. The region then holds psi / (psi + 1 − ψ(q)), which is below psi.

    Parameters
    ----------
    heads
        (layer, head) pairs, or ``"all"``, as published.
    region
        What to emphasise: a region of the prompt, or several, and token positions. Several count as their union.
    psi
        The target share, 0 to 1; 0 is neutral.
    stack
        Which attention; the model's own by default.
    """

    name: ClassVar[str] = "spotlight"

    heads: Heads = "all"
    region: Keys = ()
    psi: float = 0.2
    stack: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", as_heads(self.heads, "SpotLight"))
        object.__setattr__(self, "region", as_keys(self.region, "SpotLight", "region"))
        object.__setattr__(self, "psi", number("SpotLight", "psi", self.psi, high=1))

    @property
    def neutral(self) -> bool:
        """Whether psi is 0."""
        return self.psi == 0

    def neutralised(self) -> Self:
        """Return the method with psi 0."""
        return replace(self, psi=0.0)

    def edits(self, model: Any) -> tuple[Edit, ...]:
        """Return one floor under the region's share."""
        from headscope.attention.edits import AttentionEdit, Floor, Group

        heads = on(self.heads, model, "SpotLight", stack=self.stack)
        return (AttentionEdit(heads, (Group("region", self.region),), Floor(self.psi), stack=self.stack),)
