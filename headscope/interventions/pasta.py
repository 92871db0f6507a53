"""PASTA: emphasise parts of the prompt by turning some heads away from the rest of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from headscope.errors import RequestError
from headscope.interventions.base import Heads, Method
from headscope.interventions.checks import Keys, as_heads, as_keys, number, on

if TYPE_CHECKING:
    from headscope.attention.edits import Edit

Mode = Literal["exclude", "include", "generation"]
Generated = Literal["region", "rest"]


@dataclass(frozen=True)
class PASTA(Method):
    """Post-hoc attention steering (Zhang et al. 2024, "Tell your model where to attend", arXiv 2311.02262).

    A'[q, k] = w(k) · A[q, k] / Σ_k w(k) · A[q, k] in every row of the heads: one weight per key, one renormalisation,
    for any number of regions.

    Parameters
    ----------
    heads
        (layer, head) pairs, as ``profile_heads`` finds them, or ``"all"``.
    region
        What to emphasise: a region of the prompt, or several, and token positions. Several count as their union.
    alpha
        Above 0; 1 is neutral.
    mode
        ``"exclude"``: w is 1 in the region and alpha elsewhere in the prompt, with alpha below 1. ``"include"``: w is
        1 in the region and 1 / alpha elsewhere in the prompt, with alpha above 1; 100 is what 0.01 is to
        ``"exclude"``. ``"generation"``: w is alpha in the whole prompt and 1 in what is generated; no region.
    generated
        How tokens after the prompt count: ``"region"``, with weight 1, as published, or ``"rest"``, with the weight
        of the rest of the prompt.
    stack
        Which attention; the model's own by default. With ``"cross"`` regions are those of the encoder's text.
    """

    name: ClassVar[str] = "pasta"

    heads: Heads = "all"
    region: Keys = ()
    alpha: float = 0.01
    mode: Mode = "exclude"
    generated: Generated = "region"
    stack: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise RequestError(f"PASTA(mode={self.mode!r}): choose exclude, include or generation.")
        if self.generated not in get_args(Generated):
            raise RequestError(f"PASTA(generated={self.generated!r}): choose region or rest.")
        object.__setattr__(self, "heads", as_heads(self.heads, "PASTA"))
        object.__setattr__(self, "alpha", number("PASTA", "alpha", self.alpha, above=True))
        if self.mode == "generation":
            self._check_generation()
        else:
            object.__setattr__(self, "region", as_keys(self.region, "PASTA", "region"))
        if self.mode == "include" and self.alpha < 1:
            raise RequestError(
                f"PASTA(mode='include', alpha={self.alpha:g}) would turn away from the region: alpha must be above 1 "
                "there. For weights below 1 use mode='exclude'."
            )

    def _check_generation(self) -> None:
        if self.region != ():
            raise RequestError("PASTA(mode='generation') weighs the whole prompt: leave out region=.")
        if self.generated != "region":
            raise RequestError("PASTA(mode='generation', generated='rest') would weigh every token alike.")
        if self.stack in ("cross", "encoder"):
            raise RequestError(f"PASTA(mode='generation'): nothing is generated in {self.stack} attention.")

    @property
    def rest(self) -> float:
        """Weight of the prompt's other tokens, relative to the region or to what is generated."""
        return 1 / self.alpha if self.mode == "include" else self.alpha

    @property
    def neutral(self) -> bool:
        """Whether alpha is 1."""
        return self.alpha == 1

    def neutralised(self) -> Self:
        """Return the method with alpha 1."""
        return replace(self, alpha=1.0)

    def edits(self, model: Any) -> tuple[Edit, ...]:
        """Return one change of weights; all regions are one group, so that nothing adds up."""
        from headscope.attention.edits import AttentionEdit, Group, Scale

        heads = on(self.heads, model, "PASTA", stack=self.stack)
        new = Group("generated", ("generated",))
        if self.mode == "generation":
            return (AttentionEdit(heads, (new,), Scale((1.0,), self.rest), queries="generated", stack=self.stack),)
        groups = [Group("region", self.region)]
        if self.generated == "region" and (self.stack or model.sites.default) == "decoder":
            groups.append(new)
        return (AttentionEdit(heads, tuple(groups), Scale((1.0,) * len(groups), self.rest), stack=self.stack),)
