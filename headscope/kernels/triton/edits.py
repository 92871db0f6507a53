"""Weights of key groups under edits: from what each row puts on each group to a table the kernels apply."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headscope.kernels.edits import Reweight
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.triton.arguments import per_key
from headscope.kernels.triton.plan import Weighing

MOST = 16
"""How many groups of keys, those of all edits together, the kernels know."""


def changes(inp: AttentionInputs) -> list[Reweight]:
    """Return the edits that change weights."""
    return [edit for edit in inp.edits if isinstance(edit, Reweight)]


def size(edits: list[Reweight]) -> int:
    """Return how many groups there are when every combination of the edits' groups is one."""
    return math.prod(edit.count + 1 for edit in edits)


def joint(edits: list[Reweight]) -> Tensor:
    """Return which combination of groups each key belongs to, (B, H or 1, Tk)."""
    code = edits[0].groups.long()
    radix = edits[0].count + 1
    for edit in edits[1:]:
        code = code + radix * edit.groups.long()
        radix *= edit.count + 1
    return code.to(torch.uint8)


def weights(inp: AttentionInputs, edits: list[Reweight], masses: Tensor, positions: Tensor | None) -> Tensor:
    """Return the weight of each combination of groups, (B, H, n, J), for masses (B, H, n, J) on them."""
    total = torch.ones_like(masses)
    combination = torch.arange(masses.shape[-1], device=masses.device)
    for edit in edits:
        group = combination % (edit.count + 1)
        combination = combination // (edit.count + 1)
        own = masses.new_zeros(*masses.shape[:-1], edit.count + 1).index_add_(-1, group, masses)
        other = (1 - own.sum(-1)).clamp(min=0) if inp.leaky else torch.zeros_like(own[..., 0])
        found = torch.where(_concerned(edit, masses, positions), edit.rule.weights(own, other), 1.0)[..., group]
        total, masses = total * found, masses * found
    return total


def _concerned(edit: Reweight, masses: Tensor, positions: Tensor | None) -> Tensor:
    heads = edit.heads[None, :, None, None]
    if edit.rows is None:
        return heads
    rows = edit.rows.expand(len(masses), -1)
    rows = rows if positions is None else rows.gather(1, positions.long())
    return heads & rows[:, None, :, None]


def weighing(groups: Tensor, table: Tensor) -> Weighing:
    """Return weights as the kernels take them."""
    return Weighing(per_key(groups), table.log2().clamp(min=-1.0e30).contiguous())
