"""What can be asked of the attention of a model, as data.

Every request is a frozen dataclass. ``queries`` limits any per-query request to some rows, ``layers`` to some
layers, ``heads`` to some (layer, head) pairs. Shapes below are per layer, before selection: B batch,
H query heads, Tq queries, Tk keys, G regions. Statistics belong to *query* heads, also under grouped queries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeAlias

from headscope.errors import RequestError

Queries: TypeAlias = "None | str | int | slice | Sequence[int]"
"""Rows to keep: all, a region's name, ``"last"``, one position, a slice, or positions (negative count from the end)."""

HeadPairs: TypeAlias = "None | Iterable[tuple[int, int]]"
"""All heads, or (layer, head) pairs."""

Stack = Literal["decoder", "encoder", "cross", "vision"]
"""Which attention of the model: decoder self-attention, encoder self-attention, cross-attention, vision tower."""


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


@dataclass(frozen=True, kw_only=True)
class Request:
    """The selections that all requests share.

    Parameters
    ----------
    queries
        Rows to keep, see ``Queries``.
    layers
        Layer indices to keep; all by default.
    heads
        (layer, head) pairs to keep; then the result has one dimension ``pair`` in place of ``layer`` and ``head``.
    stack
        Which attention; by default the decoder, or the only stack that the model has.
    name
        Key of the result in the run; by default the request's name in snake case.
    """

    queries: Queries = None
    layers: Sequence[int] | None = None
    heads: HeadPairs = None
    stack: Stack | None = None
    name: str | None = None

    per_query: ClassVar[bool] = True
    """Whether the result has a ``query`` dimension that ``queries`` selects from."""

    def __post_init__(self) -> None:
        for name in ("queries", "layers"):
            value = getattr(self, name)
            if isinstance(value, (list, range)):
                object.__setattr__(self, name, tuple(value))
        if self.heads is not None:
            pairs = tuple((int(layer), int(head)) for layer, head in self.heads)
            if not pairs:
                raise RequestError(f"{type(self).__name__}(heads=…) selects no head. Leave it out to take all heads.")
            object.__setattr__(self, "heads", pairs)
        if self.heads is not None and self.layers is not None:
            raise RequestError(f"{type(self).__name__} takes layers= or heads=, not both.")
        if self.queries is not None and not self.per_query:
            raise RequestError(f"{type(self).__name__} has no query dimension: leave out queries=.")

    @property
    def key(self) -> str:
        """Key of the result in a run."""
        return self.name or _snake(type(self).__name__)

    def parameters(self) -> dict[str, Any]:
        """Fields that differ from their defaults, for provenance."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


@dataclass(frozen=True)
class Logsumexp(Request):
    """Log-normaliser of each row: (B, H, Tq). Dimensions layer, batch, head, query."""


@dataclass(frozen=True)
class Rows(Request):
    """Whole attention rows of the chosen queries: (B, H, len(queries), Tk). ``queries`` must be given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries is None:
            raise RequestError("Rows needs queries=; for the whole pattern ask for Pattern() or Pooled().")


@dataclass(frozen=True)
class Lookup(Request):
    """Attention of each query to m keys of its own choice: (B, H, Tq, m), dimension ``slot``.

    Parameters
    ----------
    keys
        Integer array of shape (Tq, m), or (B, Tq, m), of key positions; −1 marks an empty slot, which gives 0.
        With ``queries`` its rows belong to the selected queries. Or a function of the prompt that returns it.
    """

    keys: Any = field(default=None, compare=False)
    per_query: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keys is None:
            raise RequestError("Lookup needs keys=, an integer array of shape (queries, m).")


@dataclass(frozen=True)
class Mass(Request):
    """Attention mass of each region of keys: (B, H, Tq, G), sums of A over the region.

    Parameters
    ----------
    regions
        Names of regions of the prompt, or of sets of key positions: a sequence of names, or a mapping name →
        positions. ``"rest"`` names all keys that no other given region holds.
    """

    regions: Any = ("bos",)

    def __post_init__(self) -> None:
        super().__post_init__()
        regions = (self.regions,) if isinstance(self.regions, str) else self.regions
        if isinstance(regions, dict):
            regions = tuple((str(k), tuple(int(i) for i in v)) for k, v in regions.items())
        regions = tuple(regions)
        if not regions:
            raise RequestError("Mass needs at least one region.")
        object.__setattr__(self, "regions", regions)


@dataclass(frozen=True)
class Received(Request):
    """Attention that each key receives: column sums (B, H, Tk), or (B, H, groups, Tk) by query group.

    Parameters
    ----------
    groups
        Names of regions of queries; then the result has a dimension ``group``.
    mean
        Divide each column by the number of queries that can see its key.
    """

    groups: tuple[str, ...] | None = None
    mean: bool = False
    per_query: ClassVar[bool] = False


@dataclass(frozen=True)
class Entropy(Request):
    """Entropy of each row in nats: (B, H, Tq)."""


@dataclass(frozen=True)
class TopKeys(Request):
    """The n largest weights of each row: ``top_keys`` holds key positions, ``top_weights`` their attention.

    Both (B, H, Tq, n), dimension ``rank``, largest first. With n = 1, equal weights: the earlier key. Rows that see
    fewer than n keys are filled with −1 and 0.
    """

    n: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n <= 64:
            raise RequestError(f"TopKeys(n={self.n}): n must be between 1 and 64. Ask for Rows() to see all keys.")


@dataclass(frozen=True)
class Pooled(Request):
    """Overview of the whole pattern: (B, H, rows, cols), mean or max of each rectangle of the pattern."""

    rows: int = 64
    cols: int = 64
    reduce: Literal["mean", "max"] = "mean"
    per_query: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows < 1 or self.cols < 1 or self.reduce not in ("mean", "max"):
            raise RequestError("Pooled needs rows >= 1, cols >= 1 and reduce='mean' or 'max'.")


@dataclass(frozen=True)
class Weighted(Request):
    """A @ x for any per-key x of shape (Tk, C) or (B, Tk, C): (B, H, Tq, C), dimension ``channel``."""

    x: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.x is None:
            raise RequestError("Weighted needs x=, a tensor of shape (Tk, C) or (B, Tk, C).")


@dataclass(frozen=True)
class GradReceived(Request):
    """Attention × gradient that each key receives: Σ_q A·∂target/∂A, (B, H, Tk).

    To first order, what the target would lose if the head stopped attending to the key. Runs the model backwards once;
    the pattern is never formed.

    Parameters
    ----------
    target
        What to differentiate: a function of the logits (B, T, vocabulary) that returns one number, or one per sample.
        By default the log-probability of the likeliest next token of each sample.
    """

    target: Callable[[Any], Any] | None = field(default=None, compare=False)
    per_query: ClassVar[bool] = False


@dataclass(frozen=True)
class ValueNorms(Request):
    """Norm of each key's value vector per query head: (B, H, Tk); with ``through_output`` of W_O v instead of v."""

    through_output: bool = False
    per_query: ClassVar[bool] = False


@dataclass(frozen=True)
class QK(Request):
    """Keep queries and keys, O(T·D) a layer, so that any tile of any head can be computed exactly later."""

    per_query: ClassVar[bool] = False


@dataclass(frozen=True)
class Pattern(Request):
    """The whole attention pattern (B, H, Tq, Tk), below ``limit`` bytes in total; else an error says what to ask."""

    limit: int = 1 << 30


@dataclass(frozen=True)
class HeadOutput(Request):
    """z, each head's output before the output projection: (B, H, Tq, Dv), dimension ``dim``."""


@dataclass(frozen=True)
class Residual(Request):
    """The residual stream (B, Tq, D): layer l is the input of block l, the one after the last its output."""


@dataclass(frozen=True)
class MlpActivation(Request):
    """The input of the MLP's down projection (B, Tq, units), dimension ``unit``: act(gate)·up where it is gated."""
