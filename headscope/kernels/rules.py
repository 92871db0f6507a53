"""Rules that give each group of keys a weight, row by row, from the mass that the row puts on each group.

Attention becomes A'[q, k] = w(q, group of k) · A[q, k]. Masses come as (…, 1 + G): the rest first, then the groups;
``other`` (…) is what a learned sink takes, 0 without one. Weights come back in the shape of the masses. A row that a
rule would leave with nothing keeps its attention. ``needs`` are the groups without which a rule changes nothing;
``code`` is the rule for ``rows.c``, which does the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headscope.errors import RequestError


def _number(kind: str, name: str, value: float, low: float, high: float = math.inf) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        limit = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
        raise RequestError(f"{kind}({name}={value!r}): give a finite number {limit}.")


def _renormalised(weights: Tensor, masses: Tensor, other: Tensor) -> Tensor:
    total = (weights * masses).sum(-1, keepdim=True) + other[..., None]
    return torch.where(total > 0, weights / torch.where(total > 0, total, 1), torch.ones_like(weights))


@dataclass(frozen=True)
class Scale:
    """Multiply groups by constants and renormalise the row.

    Parameters
    ----------
    scales
        One factor per group.
    rest
        Factor of keys in no group.
    """

    scales: tuple[float, ...]
    rest: float = 1.0

    needs: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(float(x) for x in self.scales))
        for value in (*self.scales, self.rest):
            _number("Scale", "factor", value, 0)

    @property
    def groups(self) -> int:
        """How many groups of keys the rule speaks of."""
        return len(self.scales)

    @property
    def neutral(self) -> bool:
        """Whether the rule changes nothing: renormalised, a common factor does not."""
        return len({self.rest, *self.scales}) == 1 and self.rest > 0

    @property
    def code(self) -> tuple[float, ...]:
        """The rule's number and its own, for the compiled kernel."""
        return (0, self.rest, *self.scales)

    def weights(self, masses: Tensor, other: Tensor) -> Tensor:
        """Return the weights of rest and groups."""
        weights = masses.new_tensor([self.rest, *self.scales]).expand_as(masses)
        return _renormalised(weights, masses, other)


@dataclass(frozen=True)
class Floor:
    """Raise the first group to a share before renormalising, in rows where it has less.

    A group of mass m < share is multiplied by share / m, and the row renormalised; other rows stay.
    """

    share: float

    needs: ClassVar[tuple[int, ...]] = (1,)

    def __post_init__(self) -> None:
        _number("Floor", "share", self.share, 0, 1)

    @property
    def groups(self) -> int:
        """How many groups of keys the rule speaks of."""
        return 1

    @property
    def neutral(self) -> bool:
        """Whether the rule changes nothing."""
        return self.share == 0

    @property
    def code(self) -> tuple[float, ...]:
        """The rule's number and its own, for the compiled kernel."""
        return (1, self.share)

    def weights(self, masses: Tensor, other: Tensor) -> Tensor:
        """Return the weights of rest and group."""
        mass = masses[..., 1]
        low = (mass > 0) & (mass < self.share)
        raised = torch.where(low, self.share / torch.where(low, mass, 1), 1)
        weights = torch.stack([torch.ones_like(raised), raised], dim=-1)
        return torch.where(low[..., None], _renormalised(weights, masses, other), torch.ones_like(weights))


@dataclass(frozen=True)
class Transfer:
    """Keep part of the first group's mass; what is freed goes to all other keys in proportion to theirs."""

    keep: float

    needs: ClassVar[tuple[int, ...]] = (1,)

    def __post_init__(self) -> None:
        _number("Transfer", "keep", self.keep, 0)

    @property
    def groups(self) -> int:
        """How many groups of keys the rule speaks of."""
        return 1

    @property
    def neutral(self) -> bool:
        """Whether the rule changes nothing."""
        return self.keep == 1

    @property
    def code(self) -> tuple[float, ...]:
        """The rule's number and its own, for the compiled kernel."""
        return (2, self.keep)

    def weights(self, masses: Tensor, other: Tensor) -> Tensor:
        """Return the weights of rest and group; where the rest cannot give or take what is moved, 1."""
        rest, mass = masses[..., 0], masses[..., 1]
        takes = 1 + (1 - self.keep) * mass / torch.where(rest > 0, rest, 1)
        able = (rest > 0) & (takes >= 0)
        weights = torch.stack([takes, torch.full_like(takes, self.keep)], dim=-1)
        return torch.where(able[..., None], weights, torch.ones_like(weights))


@dataclass(frozen=True)
class Redistribute:
    """Move mass from sinks to the other tokens of a region, in rows that look at the region.

    Groups are: sinks outside the region, sinks inside it, the region's other tokens. A row is edited where sinks hold
    at most ``max_portion`` of the region's mass, the region holds at least ``min_total`` of the row, and there is a
    sink inside the region. Both kinds of sinks keep ``keep`` of their mass.
    """

    keep: float
    max_portion: float
    min_total: float

    needs: ClassVar[tuple[int, ...]] = (2, 3)

    def __post_init__(self) -> None:
        for name in ("keep", "max_portion", "min_total"):
            _number("Redistribute", name, getattr(self, name), 0, 1)

    @property
    def groups(self) -> int:
        """How many groups of keys the rule speaks of."""
        return 3

    @property
    def neutral(self) -> bool:
        """Whether the rule changes nothing."""
        return self.keep == 1

    @property
    def code(self) -> tuple[float, ...]:
        """The rule's number and its own, for the compiled kernel."""
        return (3, self.keep, self.max_portion, self.min_total)

    def weights(self, masses: Tensor, other: Tensor) -> Tensor:
        """Return the weights of rest and groups."""
        outside, inside, tokens = masses[..., 1], masses[..., 2], masses[..., 3]
        total = inside + tokens
        centred = (inside > 0) & (tokens > 0) & (total >= self.min_total) & (inside <= self.max_portion * total)
        takes = 1 + (1 - self.keep) * (outside + inside) / torch.where(tokens > 0, tokens, 1)
        keep = torch.full_like(takes, self.keep)
        weights = torch.stack([torch.ones_like(takes), keep, keep, takes], dim=-1)
        return torch.where(centred[..., None], weights, torch.ones_like(weights))


Rule = Scale | Floor | Transfer | Redistribute
