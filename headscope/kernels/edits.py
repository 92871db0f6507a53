"""Edits of attention rows, as kernels apply them: keys hidden, logits shaped, weights of key regions changed.

Each edit knows which heads it concerns, which keys belong to which of its groups, and, if not all, which query rows
it changes. Logits are shaped and keys hidden before the softmax; weights are changed after it, in the order given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor

from headscope.kernels.rules import Rule


def _pick(x: Tensor, heads: Any) -> Tensor:
    """Select heads of (B, H or 1, Tk)."""
    return x if x.shape[1] == 1 else x[:, heads]


@overload
def _one(x: Tensor, sample: int) -> Tensor: ...
@overload
def _one(x: None, sample: int) -> None: ...
def _one(x: Tensor | None, sample: int) -> Tensor | None:
    if x is None:
        return None
    return x[sample : sample + 1] if x.shape[0] > 1 else x


def _concerned(edit: RowEdit, sample: int, picked: Tensor | slice) -> Tensor:
    heads, rows = edit.heads[:, None, None], edit.rows
    return heads if rows is None else heads & rows[sample if rows.shape[0] > 1 else 0, picked][None, :, None]


@dataclass(frozen=True)
class Hide:
    """Keys that heads may not see.

    Parameters
    ----------
    heads
        Which heads are concerned, boolean (H,).
    keys
        Hidden keys, boolean (B, H or 1, Tk).
    rows
        Which query rows are concerned, boolean (B, Tq); None for all. A row left with no key is not edited.
    """

    heads: Tensor
    keys: Tensor
    rows: Tensor | None = None

    def pick(self, heads: Any) -> Hide:
        """Return the edit of some heads alone."""
        return replace(self, heads=self.heads[heads], keys=_pick(self.keys, heads))

    def of(self, sample: int) -> Hide:
        """Return the edit of one sample alone."""
        return replace(self, keys=_one(self.keys, sample), rows=_one(self.rows, sample))

    @property
    def code(self) -> tuple[float, ...]:
        """The edit's number, for the compiled kernel."""
        return (-1,)

    def cut(self, visible: Tensor, sample: int, picked: Tensor | slice) -> Tensor:
        """Return what to hide, boolean (H, rows, keys), of what is visible (H, rows, keys)."""
        hidden = self.keys[sample, :, None, : visible.shape[-1]] & self.concerned(sample, picked)
        return hidden & (visible & ~hidden).any(-1, keepdim=True)

    def concerned(self, sample: int, picked: Tensor | slice) -> Tensor:
        """Return which rows the edit changes, boolean (H, rows or 1, 1)."""
        return _concerned(self, sample, picked)


@dataclass(frozen=True)
class Shape:
    """Logits s become s / temperature + bias + boost·|s|, the last two on some keys.

    Parameters
    ----------
    heads
        Which heads are concerned, boolean (H,).
    keys
        Keys that bias and boost apply to, boolean (B, H or 1, Tk).
    """

    heads: Tensor
    keys: Tensor
    temperature: float = 1.0
    bias: float = 0.0
    boost: float = 0.0
    rows: Tensor | None = None

    def pick(self, heads: Any) -> Shape:
        """Return the edit of some heads alone."""
        return replace(self, heads=self.heads[heads], keys=_pick(self.keys, heads))

    def of(self, sample: int) -> Shape:
        """Return the edit of one sample alone."""
        return replace(self, keys=_one(self.keys, sample), rows=_one(self.rows, sample))

    @property
    def code(self) -> tuple[float, ...]:
        """The edit's number and its own, for the compiled kernel."""
        return (-2, self.temperature, self.bias, self.boost)

    def apply(self, logits: Tensor, sample: int, picked: Tensor | slice) -> Tensor:
        """Return the shaped logits (H, rows, keys)."""
        keys = self.keys[sample, :, None, : logits.shape[-1]].to(logits.dtype)
        shaped = logits / self.temperature
        if self.bias or self.boost:
            shaped = shaped + keys * (self.bias + self.boost * shaped.abs())
        return torch.where(_concerned(self, sample, picked), shaped, logits)

    def apply_(self, logits: Tensor, sample: int, picked: Tensor | slice) -> None:
        """Shape logits (H, rows, keys) in place."""
        if self.rows is not None or self.bias or self.boost:
            logits.copy_(self.apply(logits, sample, picked))
            return
        for head in self.heads.nonzero().flatten().tolist():
            logits[head].div_(self.temperature)


@dataclass(frozen=True)
class Reweight:
    """Weights of key groups, as a rule of the mass that a row puts on each.

    Parameters
    ----------
    heads
        Which heads are concerned, boolean (H,).
    groups
        Group of each key, uint8 (B, H or 1, Tk); 0 is the rest.
    count
        How many groups there are, the rest not counted.
    rule
        Gives the weights.
    rows
        Which query rows are concerned, boolean (B, Tq); None for all.
    """

    heads: Tensor
    groups: Tensor
    count: int
    rule: Rule
    rows: Tensor | None = None

    def pick(self, heads: Any) -> Reweight:
        """Return the edit of some heads alone."""
        return replace(self, heads=self.heads[heads], groups=_pick(self.groups, heads))

    def of(self, sample: int) -> Reweight:
        """Return the edit of one sample alone."""
        return replace(self, groups=_one(self.groups, sample), rows=_one(self.rows, sample))

    @property
    def code(self) -> tuple[float, ...]:
        """The rule's number and its own, for the compiled kernel."""
        return self.rule.code

    def concerned(self, sample: int, picked: Tensor | slice) -> Tensor:
        """Return which rows the edit changes, boolean (H, rows or 1, 1)."""
        return _concerned(self, sample, picked)

    def factors(self, tile: Tensor, sample: int, picked: Tensor | slice, *, leaky: bool) -> Tensor:
        """Return what to multiply attention (H, rows, keys) with.

        ``leaky`` says that rows sum to less than one, because a learned sink takes the difference.
        """
        groups = self.groups[sample, :, : tile.shape[-1]]
        names = torch.arange(self.count + 1, device=groups.device, dtype=groups.dtype)
        member = (groups[..., None] == names).to(tile.dtype).expand(len(tile), -1, -1)
        masses = tile @ member
        other = (1 - masses.sum(-1)).clamp(min=0) if leaky else torch.zeros_like(masses[..., 0])
        weights = self.rule.weights(masses, other)
        weights = torch.where(self.concerned(sample, picked), weights, torch.ones_like(weights))
        return weights @ member.transpose(1, 2)


RowEdit = Hide | Shape | Reweight
