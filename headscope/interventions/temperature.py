"""Temperature of attention: flatter or sharper rows, head by head."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from headscope.errors import RequestError
from headscope.interventions.base import Head, Heads, Method
from headscope.interventions.checks import as_heads, number, on

if TYPE_CHECKING:
    from headscope.attention.edits import Edit


@dataclass(frozen=True)
class Temperature(Method):
    """A' = softmax(logits / temperature) in some heads.

    The training-free form of selective self-attention (Zhang et al. 2024, arXiv 2411.12892), which learns a
    temperature for every query.

    Parameters
    ----------
    heads
        (layer, head) pairs, or ``"all"``.
    temperature
        Above 0; 1 is neutral, above 1 rows become flatter, below 1 sharper. One number, or one for each of ``heads``
        in the order given.
    stack
        Which attention; the model's own by default.
    """

    name: ClassVar[str] = "temperature"

    heads: Heads = "all"
    temperature: float | tuple[float, ...] = 2.0
    stack: str | None = None

    def __post_init__(self) -> None:
        given: Any = self.temperature
        if isinstance(given, (str, int, float)) or not hasattr(given, "__iter__"):
            object.__setattr__(self, "heads", as_heads(self.heads, "Temperature"))
            object.__setattr__(self, "temperature", number("Temperature", "temperature", given, above=True))
            return
        values = tuple(number("Temperature", "temperature", value, above=True) for value in given)
        named: Any = self.heads
        pairs = [] if isinstance(named, str) else [pair for head in named for pair in as_heads((head,), "Temperature")]
        if len(pairs) != len(values) or len(set(pairs)) < len(pairs):
            raise RequestError(
                f"Temperature has {len(values)} values for {len(pairs)} named heads: pass one number, or one for each "
                "of heads=, no head twice."
            )
        by_head = dict(zip(pairs, values, strict=True))
        object.__setattr__(self, "heads", tuple(sorted(by_head)))
        object.__setattr__(self, "temperature", tuple(by_head[pair] for pair in sorted(by_head)))

    @property
    def neutral(self) -> bool:
        """Whether every temperature is 1."""
        return set(self._values()) == {1.0}

    def neutralised(self) -> Self:
        """Return the method with temperature 1."""
        return replace(self, temperature=1.0)

    def with_heads(self, heads: Iterable[Head]) -> Self:
        """Return the method on other heads.

        Raises
        ------
        RequestError
            If each head has a temperature of its own, and one of the new heads has none.
        """
        pairs = tuple(heads)
        if not isinstance(self.temperature, tuple):
            return replace(self, heads=pairs)
        own = dict(zip(self.heads, self.temperature, strict=True))
        missing = [pair for pair in pairs if pair not in own]
        if missing:
            raise RequestError(f"Temperature has one value for each head, and none for {missing[0]}: pass one number.")
        return replace(self, heads=pairs, temperature=tuple(own[pair] for pair in pairs))

    def _values(self) -> tuple[float, ...]:
        return self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)

    def edits(self, model: Any) -> tuple[Edit, ...]:
        """Return one edit of logits for each temperature."""
        from headscope.attention.edits import LogitEdit

        heads = on(self.heads, model, "Temperature", stack=self.stack)
        values = self._values() * (1 if isinstance(self.temperature, tuple) else len(heads))
        groups: dict[float, list[Head]] = {}
        for pair, value in zip(heads, values, strict=True):
            groups.setdefault(value, []).append(pair)
        return tuple(LogitEdit(tuple(pairs), temperature=value, stack=self.stack) for value, pairs in groups.items())
