"""What a forward pass knows about its prompts: which positions are real, and where the regions lie."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from headscope.attention.requests import Queries
from headscope.errors import RequestError, nearest

Made = TypeVar("Made")


@dataclass
class Context:
    """Positions of one stack's queries and keys in one forward pass.

    Parameters
    ----------
    regions
        Region name → positions per sample, in padded coordinates.
    valid
        Real (not padding) query positions (B, Tq); None where all are real.
    key_valid
        Real key positions (B, Tk), where they are not the queries' own.
    total
        Length of the keys so far, cached ones included; None where keys are not the queries' own tokens.
    prompt_length
        Where generated tokens begin.
    """

    batch: int
    regions: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    valid: Tensor | None = None
    key_valid: Tensor | None = None
    total: int | None = None
    prompt_length: int | None = None
    _made: dict[Any, tuple[Any, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def made(self, name: Hashable, version: Hashable, make: Callable[[], Made]) -> Made:
        """Return what ``make`` makes, made once for all layers as long as ``version`` is the same."""
        version = (version, self.total, self.prompt_length)
        if name not in self._made or self._made[name][0] != version:
            self._made[name] = version, make()
        found: Made = self._made[name][1]
        return found

    def region(self, name: str, length: int) -> list[list[int]]:
        """Return the positions of a region per sample; ``length`` is the number of positions there are."""
        if name == "generated" and self.prompt_length is not None:
            return [list(range(self.prompt_length, length)) for _ in range(self.batch)]
        if name in ("all", "last"):
            real = [self._real(sample, length) for sample in range(self.batch)]
            return real if name == "all" else [positions[-1:] for positions in real]
        if name not in self.regions:
            known = [*self.regions, "all", "last", "generated"]
            raise RequestError(f"The prompt has no region {name!r}.{nearest(name, known)}")
        return [list(positions) for positions in self.regions[name]]

    def _real(self, sample: int, length: int) -> list[int]:
        valid = self.key_valid if self.key_valid is not None else self.valid
        if valid is None or valid.shape[1] > length or (valid.shape[1] < length and self.total is None):
            return list(range(length))
        # Keys past those of the prompt are new tokens, all of them real.
        return [*torch.nonzero(valid[sample]).flatten().tolist(), *range(valid.shape[1], length)]

    def keys(self, positions: Sequence[int], sample: int, length: int) -> list[int]:
        """Move key positions counted in the bare prompt to where padding put them."""
        real = self._real(sample, length)
        wrong = [p for p in positions if not -len(real) <= p < len(real)]
        if wrong:
            raise RequestError(f"Key position {wrong[0]} is outside the {len(real)} tokens there are.")
        return [real[p] for p in positions]

    def queries(self, queries: Queries, length: int) -> Tensor | None:
        """Return query positions (B, n), −1 for none, or None for all."""
        if queries is None or (isinstance(queries, str) and queries == "all"):
            return None
        rows = [self._rows(queries, sample, length) for sample in range(self.batch)]
        if not any(rows):
            raise RequestError(f"queries={queries!r} selects no position.")
        width = max(map(len, rows))
        return torch.tensor([row + [-1] * (width - len(row)) for row in rows])

    def _rows(self, queries: Queries, sample: int, length: int) -> list[int]:
        real = self._queries_of(sample, length)
        if isinstance(queries, str):
            return real[-1:] if queries == "last" else self.region(queries, length)[sample]
        if isinstance(queries, slice):
            return real[queries]
        wanted = [queries] if isinstance(queries, int) else [int(q) for q in queries or ()]
        for position in wanted:
            if not -len(real) <= position < len(real):
                raise RequestError(f"Query {position} is outside the prompt of {len(real)} tokens.")
        return [real[position] for position in wanted]

    def _queries_of(self, sample: int, length: int) -> list[int]:
        if self.valid is None or self.valid.shape[1] != length:
            return list(range(length))
        return torch.nonzero(self.valid[sample]).flatten().tolist()
