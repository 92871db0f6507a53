"""One call of attention, as every kernel receives it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headscope.kernels.edits import RowEdit


@dataclass(frozen=True)
class AttentionInputs:
    """Queries, keys and values of one layer with everything that shapes its pattern.

    Parameters
    ----------
    q
        Queries after rotary embedding, (B, H, Tq, D).
    k, v
        Keys (B, Hkv, Tk, D) and values (B, Hkv, Tk, Dv); H is a multiple of Hkv.
    scale
        Factor of q·k.
    mask
        None, boolean (True = may attend) or additive, broadcastable to (B, H, Tq, Tk).
    bias
        Additive position bias, broadcastable to (B, H, Tq, Tk), or None.
    causal
        Query i sees keys 0…i+offset, with offset = Tk − Tq. Combined with ``mask``.
    softcap
        Logits become softcap·tanh(logits / softcap) before mask and bias.
    sinks
        Learned sink logits (H,): one more term in each row's normaliser, no key of its own.
    edits
        Changes of rows, in the order in which they apply.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    mask: Tensor | None = None
    bias: Tensor | None = None
    causal: bool = False
    softcap: float | None = None
    sinks: Tensor | None = None
    edits: tuple[RowEdit, ...] = ()

    @property
    def batch(self) -> int:
        """B."""
        return self.q.shape[0]

    @property
    def heads(self) -> int:
        """H, query heads."""
        return self.q.shape[1]

    @property
    def kv_heads(self) -> int:
        """Hkv, key-value heads."""
        return self.k.shape[1]

    @property
    def group(self) -> int:
        """Query heads per key-value head."""
        return self.heads // self.kv_heads

    @property
    def tq(self) -> int:
        """Tq, queries."""
        return self.q.shape[2]

    @property
    def tk(self) -> int:
        """Tk, keys."""
        return self.k.shape[2]

    @property
    def offset(self) -> int:
        """Position of query 0 among the keys when causal."""
        return self.tk - self.tq

    @property
    def plain(self) -> bool:
        """Whether scaled softmax under at most a causal mask is the whole story: flash identities hold."""
        return self.mask is None and self.bias is None and self.softcap is None and not self.edits

    def with_kv_head(self, kv_head: int) -> AttentionInputs:
        """Return the part that belongs to one key-value head: its query group against one key head."""
        heads = slice(kv_head * self.group, (kv_head + 1) * self.group)
        return replace(
            self,
            q=self.q[:, heads],
            k=self.k[:, kv_head : kv_head + 1],
            v=self.v[:, kv_head : kv_head + 1],
            mask=_heads(self.mask, heads),
            bias=_heads(self.bias, heads),
            sinks=None if self.sinks is None else self.sinks[heads],
            edits=tuple(edit.pick(heads) for edit in self.edits),
        )

    def select(self, heads: Tensor) -> AttentionInputs:
        """Return the part of some query heads (n,), each with a copy of its key-value head."""
        return replace(
            self,
            q=self.q[:, heads],
            k=self.k[:, heads // self.group],
            v=self.v[:, heads // self.group],
            mask=_heads(self.mask, heads),
            bias=_heads(self.bias, heads),
            sinks=None if self.sinks is None else self.sinks[heads],
            edits=tuple(edit.pick(heads) for edit in self.edits),
        )

    @property
    def leaky(self) -> bool:
        """Whether rows sum to less than one."""
        return self.sinks is not None


def _heads(extra: Tensor | None, heads: slice | Tensor) -> Tensor | None:
    return extra if extra is None or extra.shape[1] == 1 else extra[:, heads]


def rectangle(extra: Tensor, batch: int, rows: Tensor | slice, columns: int) -> Tensor:
    """Return rows × the first ``columns`` keys of a mask or bias for one sample: (H or 1, rows, columns)."""
    sample = extra[batch if extra.shape[0] > 1 else 0]
    picked = sample if sample.shape[-2] == 1 else sample[..., rows, :]
    return picked if picked.shape[-1] == 1 else picked[..., :columns]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision that statistics are computed in: float64 stays, everything else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
