"""One attention call under edits: which of its keys and rows the names of an edit mean."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headscope.attention.context import Context
from headscope.attention.sites import Site
from headscope.errors import RequestError
from headscope.kernels.inputs import AttentionInputs

AFTER = "after:"
"""Before the name of a region: the query rows behind it."""


@dataclass
class Call:
    """One layer's attention call.

    Parameters
    ----------
    site, inp, context
        Where, what, and what is known of the prompts.
    memory
        What edits keep from the prefill for the decoding steps after it, and from layer to layer.
    owner
        Key of the edit's own memory.
    """

    site: Site
    inp: AttentionInputs
    context: Context
    memory: dict[Hashable, Any]
    owner: Hashable

    @property
    def key_start(self) -> int:
        """Absolute position of key 0: past it where a sliding-window cache has dropped the oldest."""
        total = self.context.total
        return 0 if total is None or self.site.stack == "cross" else max(0, total - self.inp.tk)

    @property
    def length(self) -> int:
        """Number of absolute key positions so far."""
        return self.inp.tk + self.key_start

    def owners(self) -> list[int]:
        """Return the prompt that each row of the batch continues: beams of one prompt lie side by side."""
        return [sample * self.context.batch // self.inp.batch for sample in range(self.inp.batch)]

    def active(self, heads: Sequence[tuple[int, int]]) -> Tensor:
        """Return which heads of this layer are concerned, boolean (H,)."""
        slot = (self.owner, "heads", self.site.layer)
        if slot not in self.memory:
            active = torch.zeros(self.inp.heads, dtype=torch.bool)
            active[[head for layer, head in heads if layer == self.site.layer]] = True
            self.memory[slot] = active.to(self.inp.q.device)
        held: Tensor = self.memory[slot]
        return held

    def positions(self, keys: Sequence[str | int]) -> list[list[int]]:
        """Return the absolute key positions that region names and positions mean, for each prompt.

        Raises
        ------
        RequestError
            If a region is unknown, or has no token at all; ``"generated"`` may be empty.
        """
        found: list[list[int]] = [[] for _ in range(self.context.batch)]
        for key in keys:
            if key == "generated":
                start = self.context.prompt_length
                here = [list(range(start, self.length)) if start is not None else []] * self.context.batch
            elif isinstance(key, str):
                here = self.context.region(key, self.length)
                if not any(here):
                    raise RequestError(f"The region {key!r} is empty in this prompt: there is nothing to edit.")
            else:
                here = [self.context.keys([key], sample, self.length) for sample in range(self.context.batch)]
            for positions, more in zip(found, here, strict=True):
                positions.extend(more)
        return found

    def mask(self, keys: Sequence[str | int]) -> Tensor:
        """Return which keys of the call are meant, boolean (B, 1, Tk)."""
        slot = (self.owner, "mask", tuple(keys))
        if self.memory.get(slot, (None,))[0] != self.length:
            held = torch.zeros(self.inp.batch, 1, self.length, dtype=torch.bool)
            found = self.positions(keys)
            for sample, owner in enumerate(self.owners()):
                held[sample, 0, found[owner]] = True
            self.memory[slot] = self.length, held.to(self.inp.q.device)
        whole: Tensor = self.memory[slot][1]
        return whole[..., self.key_start : self.key_start + self.inp.tk]

    def rows(self, queries: str | None) -> Tensor | None:
        """Return which query rows are meant by a region's name, boolean (B, Tq), or None for all.

        ``"after:name"`` means all rows behind the last token of a region.
        """
        if queries is None:
            return None
        slot, now = (self.owner, "rows", queries, self.site.stack), (self.length, self.inp.batch, self.inp.tq)
        if self.memory.get(slot, (None,))[0] != now:
            found = self._rows(queries).to(self.inp.q.device)
            self.memory[slot] = now, None if bool(found.all()) else found
        held: Tensor | None = self.memory[slot][1]
        return held

    def _rows(self, queries: str) -> Tensor:
        start = self.length - self.inp.tq if self.site.stack != "cross" else 0
        rows = torch.zeros(self.inp.batch, self.inp.tq, dtype=torch.bool)
        if queries == "last":
            real = self.real_rows()
            places = torch.arange(self.inp.tq).expand_as(rows)
            rows[torch.arange(len(rows)), (places if real is None else places * real.cpu()).amax(-1)] = True
        elif queries == "generated":
            first = self.context.prompt_length
            if first is not None:
                rows[:, max(0, first - start) :] = True
        elif queries.startswith(AFTER):
            positions = self.positions([queries.removeprefix(AFTER)])
            for sample, owner in enumerate(self.owners()):
                first = max(positions[owner], default=self.length) + 1
                rows[sample, max(0, first - start) :] = True
        else:
            found = self.context.region(queries, self.length)
            for sample, owner in enumerate(self.owners()):
                rows[sample, [p - start for p in found[owner] if 0 <= p - start < self.inp.tq]] = True
        return rows

    def real_rows(self) -> Tensor | None:
        """Return which query rows are real tokens, boolean (B, Tq), or None where all are."""
        valid = self.context.valid
        if valid is None or valid.shape[1] != self.inp.tq:
            return None
        return valid.bool()[self.owners()].to(self.inp.q.device)
