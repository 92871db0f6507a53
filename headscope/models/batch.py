"""Prompts of different lengths in one padded batch, with regions that know about the padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from headscope.errors import PromptError
from headscope.models.prompt import Prompt

if TYPE_CHECKING:
    import torch

Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Padded prompts.

    Attributes
    ----------
    ids
        Token ids, int64 (B, T).
    attention_mask
        1 for tokens, 0 for padding, int64 (B, T).
    prompts
        The prompts, one per row.
    side
        Where the padding is.
    """

    ids: torch.Tensor
    attention_mask: torch.Tensor
    prompts: tuple[Prompt, ...]
    side: Side = "left"

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def width(self) -> int:
        """T, the number of columns."""
        return int(self.ids.shape[1])

    @property
    def starts(self) -> tuple[int, ...]:
        """Column of each row's first token."""
        return tuple(self.width - len(p) if self.side == "left" else 0 for p in self.prompts)

    @property
    def position_ids(self) -> torch.Tensor:
        """Position of each token in its own prompt, int64 (B, T); 0 on padding."""
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)

    def regions(self, name: str) -> list[tuple[int, ...]]:
        """Columns of a region in each row; see ``Prompt.positions`` for the names that always exist."""
        return [
            tuple(start + i for i in prompt.positions(name))
            for start, prompt in zip(self.starts, self.prompts, strict=True)
        ]

    def to(self, device: Any) -> Batch:
        """Return the batch with its tensors on ``device``."""
        return Batch(self.ids.to(device), self.attention_mask.to(device), self.prompts, self.side)


def make_batch(prompts: Sequence[Prompt], pad_id: int | None = None, side: Side = "left") -> Batch:
    """Pad prompts to the length of the longest.

    ``pad_id`` may be None: padding is masked, so that any id will do. Left padding suits generation, because the last
    column of every row is its last token.
    """
    import torch

    if not prompts:
        raise PromptError("A batch needs at least one prompt.")
    if side not in ("left", "right"):
        raise PromptError(f"Padding side {side!r} is neither 'left' nor 'right'.")
    for prompt in prompts:
        if not isinstance(prompt, Prompt):
            raise PromptError(f"A batch is made of prompts, not {type(prompt).__name__}. Use model.prompt(text) first.")
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id or 0, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        columns = slice(width - len(prompt), width) if side == "left" else slice(0, len(prompt))
        ids[row, columns] = torch.tensor(prompt.ids, dtype=torch.int64)
        mask[row, columns] = 1
    return Batch(ids, mask, tuple(prompts), side)
