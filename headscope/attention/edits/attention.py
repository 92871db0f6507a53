"""Edits of attention rows, as data: keys hidden, weights of key groups changed, logits shaped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from headscope.attention.edits.call import Call
from headscope.attention.edits.finders import Finder, ResidualPeaks
from headscope.attention.edits.heads import pairs
from headscope.attention.sites import Sites
from headscope.errors import RequestError
from headscope.kernels.edits import Hide, Reweight, RowEdit, Shape
from headscope.kernels.rules import Rule

if TYPE_CHECKING:
    from headscope.attention.session import Session


def _keys(given: object, kind: str) -> tuple[str | int, ...]:
    keys = (given,) if isinstance(given, (str, int)) else tuple(given)  # type: ignore[arg-type]
    if not keys:
        raise RequestError(f"{kind} names no key: give names of regions or key positions.")
    return keys


class RowsEdit:
    """What edits of attention rows have in common."""

    heads: tuple[tuple[int, int], ...]
    stack: str | None

    @property
    def neutral(self) -> bool:
        """Whether the edit changes nothing."""
        return False

    def validate(self, sites: Sites) -> None:
        """Raise RequestError if the edit names a head that the model has not."""
        sites.check_heads(self.heads, self.stack)

    def hooks(self, session: Session) -> list[Any]:
        """Install what the edit needs outside attention; return the handles."""
        return []

    def bind(self, call: Call) -> RowEdit | None:
        """Return what the kernels do at one call, or None where no row is concerned."""
        raise NotImplementedError


@dataclass(frozen=True)
class KnockOut(RowsEdit):
    """Hide keys from heads: their attention to ``regions`` becomes 0 and the rest of each row is renormalised.

    Rows that would see nothing keep their attention: what has no other key is not edited.

    Parameters
    ----------
    heads
        (layer, head) pairs.
    regions
        Names of regions of the prompt, and key positions.
    queries
        Hide them from the query rows of this region only; from all by default.
    stack
        Which attention; the model's own by default.
    """

    heads: tuple[tuple[int, int], ...]
    regions: tuple[str | int, ...]
    queries: str | None = None
    stack: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", pairs(self.heads, "KnockOut"))
        object.__setattr__(self, "regions", _keys(self.regions, "KnockOut"))

    def bind(self, call: Call) -> RowEdit | None:
        """Return what the kernels do at one call."""
        rows = call.rows(self.queries)
        if rows is not None and not bool(rows.any()):
            return None
        return Hide(call.active(self.heads), call.mask(self.regions), rows)


@dataclass(frozen=True)
class Group:
    """A named set of keys: regions and positions, or keys that are found while the model runs."""

    name: str
    keys: tuple[str | int, ...] | Finder

    def __post_init__(self) -> None:
        if isinstance(self.keys, (str, int, tuple, list)):
            object.__setattr__(self, "keys", _keys(self.keys, f"Group({self.name!r})"))


@dataclass(frozen=True)
class AttentionEdit(RowsEdit):
    """Change how much heads attend to groups of keys: A'[q, k] = w(q, group of k) · A[q, k].

    Parameters
    ----------
    heads
        (layer, head) pairs.
    groups
        Disjoint sets of keys, in the order that the rule speaks of them; all other keys are the rest. A key that is
        found while the model runs leaves the region that it lies in for the group of its finder, the first such one.
    rule
        Gives the weights of each row from the mass it puts on each group.
    queries
        Edit the query rows of this region only, such as ``"last"``, ``"generated"`` or ``"after:name"``, the rows
        behind region ``name``; all by default.
    stack
        Which attention; the model's own by default.
    """

    heads: tuple[tuple[int, int], ...]
    groups: tuple[Group, ...]
    rule: Rule
    queries: str | None = None
    stack: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", pairs(self.heads, "AttentionEdit"))
        object.__setattr__(self, "groups", tuple(self.groups))
        if len(self.groups) != self.rule.groups:
            raise RequestError(
                f"{type(self.rule).__name__} speaks of {self.rule.groups} groups of keys, and there are "
                f"{len(self.groups)}: {', '.join(g.name for g in self.groups) or 'none'}."
            )

    @property
    def neutral(self) -> bool:
        """Whether the rule changes nothing."""
        return self.rule.neutral

    def hooks(self, session: Session) -> list[Any]:
        """Watch what finders need to see."""
        layers = {layer for layer, _ in self.heads}
        finders = [group.keys for group in self.groups if isinstance(group.keys, ResidualPeaks)]
        return [handle for finder in dict.fromkeys(finders) for handle in finder.watch(session, layers, self.stack)]

    def bind(self, call: Call) -> RowEdit | None:
        """Return what the kernels do at one call."""
        rows = call.rows(self.queries)
        if rows is not None and not bool(rows.any()):
            return None
        heads = self._concerned(call)
        groups, named = self._static(call)
        if heads is None or any(n not in named for n in self.rule.needs if isinstance(self.groups[n - 1].keys, tuple)):
            return None
        for number, group in reversed(list(enumerate(self.groups, start=1))):
            if not isinstance(group.keys, tuple):
                mask = group.keys.find(call, heads)
                groups = torch.where(mask, torch.full_like(groups[..., :1], number), groups)
        return Reweight(heads, groups, len(self.groups), self.rule, rows)

    def _concerned(self, call: Call) -> torch.Tensor | None:
        """Return the heads (H,) of this layer for which the keys were found that the rule needs; set by the prefill."""
        slot = (call.owner, "concerned", call.site.layer)
        if slot not in call.memory:
            heads, some = call.active(self.heads), []
            for number, group in enumerate(self.groups, start=1):
                if not isinstance(group.keys, tuple):
                    mask = group.keys.find(call, heads)
                    some.append(bool(mask.any()))
                    heads = heads & mask.any(-1).any(0) if number in self.rule.needs else heads
            if some:
                call.memory.setdefault((call.owner, "found"), []).append(any(some))
            call.memory[slot] = heads if bool(heads.any()) else None
        held: torch.Tensor | None = call.memory[slot]
        return held

    def _static(self, call: Call) -> tuple[torch.Tensor, set[int]]:
        """Return the groups of keys that are known by name, uint8 (B, 1, Tk), and those of them that hold a key.

        Worked out once for each length.
        """
        slot, now = (call.owner, "static", call.inp.tk), (call.length, call.key_start)
        if call.memory.get(slot, (None,))[0] != now:
            groups = torch.zeros(call.inp.batch, 1, call.inp.tk, dtype=torch.uint8, device=call.inp.q.device)
            for number, group in enumerate(self.groups, start=1):
                if not isinstance(group.keys, tuple):
                    continue
                mask = call.mask(group.keys)
                if bool((mask & (groups > 0)).any()):
                    raise RequestError(
                        f"Keys of the group {group.name!r} belong to another group too. Groups must be disjoint: which "
                        "weight would such a key get?"
                    )
                groups[mask] = number
            call.memory[slot] = now, (groups, set(groups.unique().tolist()))
        held: tuple[torch.Tensor, set[int]] = call.memory[slot][1]
        return held


@dataclass(frozen=True)
class LogitEdit(RowsEdit):
    """Shape logits s before the softmax: s / temperature + bias + boost·|s|, the last two on the keys of regions.

    Parameters
    ----------
    heads
        (layer, head) pairs.
    temperature
        Above 1 rows become flatter, below 1 sharper.
    bias
        Added to the logits of the regions' keys, in nats.
    boost
        Times the absolute value of the tempered logit, added on the regions' keys.
    regions
        Names of regions and key positions that bias and boost apply to.
    queries
        Edit the query rows of this region only; all by default.
    stack
        Which attention; the model's own by default.
    """

    heads: tuple[tuple[int, int], ...]
    temperature: float = 1.0
    bias: float = 0.0
    boost: float = 0.0
    regions: tuple[str | int, ...] = ()
    queries: str | None = None
    stack: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", pairs(self.heads, "LogitEdit"))
        given: object = self.regions
        object.__setattr__(self, "regions", (given,) if isinstance(given, (str, int)) else tuple(self.regions))
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise RequestError(f"LogitEdit(temperature={self.temperature!r}): a positive finite number is needed.")
        if not (math.isfinite(self.bias) and math.isfinite(self.boost)):
            raise RequestError("LogitEdit: bias and boost must be finite; to hide keys use KnockOut.")
        if (self.bias or self.boost) and not self.regions:
            raise RequestError("LogitEdit: bias and boost need regions=, the keys that they apply to.")

    @property
    def neutral(self) -> bool:
        """Whether the edit changes nothing."""
        return self.temperature == 1 and self.bias == 0 and self.boost == 0

    def bind(self, call: Call) -> RowEdit | None:
        """Return what the kernels do at one call."""
        rows = call.rows(self.queries)
        if rows is not None and not bool(rows.any()):
            return None
        heads = call.active(self.heads)
        if self.regions:
            keys = call.mask(self.regions)
        else:
            keys = torch.zeros(call.inp.batch, 1, call.inp.tk, dtype=torch.bool, device=call.inp.q.device)
        return Shape(heads, keys, self.temperature, self.bias, self.boost, rows)
