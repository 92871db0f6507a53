"""What every method of intervention is: parameters as data, and the edits of a model that they mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from headscope.errors import RequestError

if TYPE_CHECKING:
    from headscope.attention.edits import Edit

Head = tuple[int, int]
Heads = tuple[Head, ...] | Literal["all"]
"""(layer, head) pairs, or all heads of the model."""


class Method(ABC):
    """A method of intervention, as a frozen dataclass.

    ``model.edited(method)`` puts it in force. Strength and scope are fields, under the names of the paper.
    """

    name: ClassVar[str]
    """Name on the command line and in files."""

    @abstractmethod
    def edits(self, model: Any) -> tuple[Edit, ...]:
        """Return the edits of ``model`` that the method consists of, in the order in which they apply."""

    @property
    @abstractmethod
    def neutral(self) -> bool:
        """Whether the method, at these parameters, changes nothing."""

    @abstractmethod
    def neutralised(self) -> Self:
        """Return the method at the strength that changes nothing, for the control row of evaluations."""

    def with_heads(self, heads: Iterable[Head]) -> Self:
        """Return the method on other heads.

        Raises
        ------
        RequestError
            If the method does not act on heads.
        """
        if "heads" not in getattr(self, "__dataclass_fields__", {}):
            raise RequestError(f"{type(self).__name__} does not act on heads, so there are none to choose.")
        return replace(self, heads=tuple(heads))  # type: ignore[type-var]


def resolve(heads: Heads, model: Any, *, layers: Iterable[int] | None = None, stack: str | None = None) -> Heads:
    """Return ``heads`` as pairs: ``"all"`` means every head of the stack, of ``layers`` where given.

    Raises
    ------
    RequestError
        If there is no head, or ``heads`` is neither pairs nor ``"all"``.
    """
    if isinstance(heads, str):
        if heads != "all":
            raise RequestError(f"heads={heads!r}: pass (layer, head) pairs, or 'all'.")
        found = model.sites.stack(stack)
        wanted = set(found) if layers is None else set(layers)
        heads = tuple((layer, head) for layer in sorted(found) if layer in wanted for head in range(found[layer].heads))
    pairs = tuple((int(layer), int(head)) for layer, head in heads)
    if not pairs:
        raise RequestError("No head is named: pass heads=[(layer, head), …], or 'all'.")
    return pairs
