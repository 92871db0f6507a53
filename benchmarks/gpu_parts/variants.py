"""What is timed: the calls of the Triton kernels, and PyTorch's own attention beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from headscope.kernels.edits import Hide, Reweight, RowEdit, Shape
from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.rows import Wants
from headscope.kernels.triton.compute import compute, refusal

from .cases import DEVICE, RULES, Case, Inputs, Job

HEADS, KV_HEADS = 32, 8


class Refused(Exception):
    """The kernels say that they cannot do this."""


class Setting:
    """Inputs of one length and head size: bfloat16, one sample, laid out as transformers does."""

    def __init__(self, length: int, head_size: int) -> None:
        self.length, self.head_size = length, head_size
        self.source = Inputs(Case("", head_size, "bfloat16", HEADS // KV_HEADS, "", (length, length), 1.0, length))

        def lines(heads: int) -> Tensor:
            made = torch.empty(1, length, heads, head_size, dtype=torch.bfloat16, device=DEVICE)
            return made.normal_(generator=self.source.generator).transpose(1, 2)

        self.q, self.k, self.v = lines(HEADS), lines(KV_HEADS), lines(KV_HEADS)
        self.regions = self.source.regions(1, length)

    def call(self, edit: str | None, decode: bool) -> AttentionInputs:
        q = self.q[:, :, -1:].contiguous() if decode else self.q
        inp = AttentionInputs(q, self.k, self.v, self.head_size**-0.5, causal=True)
        return inp if edit is None else replace(inp, edits=self.edits(edit))

    def edits(self, name: str) -> tuple[RowEdit, ...]:
        heads = torch.ones(HEADS, dtype=torch.bool, device=DEVICE)
        if name in RULES:
            rule = RULES[name]
            return (Reweight(heads, self.source.runs(rule.groups, 1, self.length), rule.groups, rule),)
        keys = self.source.runs(1, 1, self.length) > 0
        return (Hide(heads, keys) if name == "hide" else Shape(heads, keys, temperature=1.5, bias=-0.5),)


Call = Callable[[], Any]
Build = Callable[[Setting], Call]


def ours(edit: str | None = None, *, decode: bool = False, regions: bool = False, **asked: Any) -> Build:
    """A call of the Triton kernels."""

    def build(s: Setting) -> Call:
        inp = s.call(edit, decode)
        wants = Wants(**asked, **({"project": s.regions, "indicator": True} if regions else {}))
        refused = refusal(inp, wants)
        if refused:
            raise Refused(refused)
        return partial(compute, inp, wants)

    return build


def stock(backend: SDPBackend, *, decode: bool = False) -> Build:
    """One of PyTorch's fused kernels; keys are repeated beforehand if it cannot share them between heads."""

    def build(s: Setting) -> Call:
        q = s.call(None, decode).q

        def call(k: Tensor, v: Tensor, gqa: bool) -> Tensor:
            with sdpa_kernel(backend):
                return functional.scaled_dot_product_attention(q, k, v, is_causal=not decode, enable_gqa=gqa)

        try:
            call(s.k, s.v, True)
        except RuntimeError:
            return partial(call, *(x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (s.k, s.v)), False)
        return partial(call, s.k, s.v, True)

    return build


def flex(*, decode: bool = False) -> Build:
    """FlexAttention, compiled for one length; its causal blocks are written down rather than found by a T×T mask."""

    def build(s: Setting) -> Call:
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        torch._dynamo.reset()
        attention = torch.compile(flex_attention, dynamic=False)
        q = s.call(None, decode).q
        if decode:
            return partial(attention, q, s.k, s.v, enable_gqa=True)
        n = -(-s.length // 128)
        at = torch.arange(n, dtype=torch.int32, device=DEVICE)
        blocks = BlockMask.from_kv_blocks(
            torch.ones_like(at)[None, None], ((at[:, None] + at) % n)[None, None],
            at[None, None], at.expand(n, n)[None, None].contiguous(),
            BLOCK_SIZE=128, mask_mod=lambda b, h, row, key: row >= key, seq_lengths=(s.length, s.length),
        )  # fmt: skip
        return partial(attention, q, s.k, s.v, block_mask=blocks, enable_gqa=True)

    return build


def eager(*, decode: bool = False, statistics_too: bool = False) -> Build:
    """Explicit attention as transformers writes it, with the T×T pattern; its mask is made beforehand."""

    def build(s: Setting) -> Call:
        q = s.call(None, decode).q
        mask = torch.full((q.shape[2], s.length), -torch.inf, dtype=q.dtype, device=DEVICE)
        mask = mask.triu_(1 + s.length - q.shape[2])
        regions = s.regions.to(q.dtype)[:, None]

        def call() -> tuple[Tensor, ...]:
            k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (s.k, s.v))
            logits = q @ k.transpose(2, 3) * s.head_size**-0.5 + mask
            pattern = functional.softmax(logits, dim=-1, dtype=torch.float32).to(q.dtype)
            if not statistics_too:
                return (pattern @ v,)
            entropy = torch.special.entr(pattern).sum(-1)
            return pattern @ v, logits.logsumexp(-1), entropy, pattern @ regions, *pattern.max(-1)

        return call

    return build


ALL: dict[str, Any] = {"out": True, "lse": True, "entropy": True, "top": 1, "regions": True}
VARIANTS: dict[str, Build] = {
    "flash": stock(SDPBackend.FLASH_ATTENTION),
    "plain": ours(out=True),
    "lse": ours(out=True, lse=True),
    "entropy": ours(out=True, entropy=True),
    "masses": ours(out=True, regions=True),
    "top": ours(out=True, top=1),
    "all": ours(**ALL),
    "received": ours(received=True),
    "plain + received": ours(out=True, received=True),
    "edit two groups": ours("floor", out=True),
    "edit four groups": ours("redistribute", out=True),
    "edit eight groups": ours("seven groups", out=True),
    "edit hide": ours("hide", out=True),
    "edit shape": ours("shape", out=True),
    "edit two groups, all": ours("floor", **ALL),
    "decode flash": stock(SDPBackend.FLASH_ATTENTION, decode=True),
    "decode plain": ours(decode=True, out=True),
    "decode all": ours(decode=True, **ALL),
    "decode edit two groups": ours("floor", decode=True, out=True),
    "decode edit hide": ours("hide", decode=True, out=True),
    "cudnn": stock(SDPBackend.CUDNN_ATTENTION),
    "flex": flex(),
    "decode flex": flex(decode=True),
    "decode eager": eager(decode=True),
    "eager": eager(),
    "eager all": eager(statistics_too=True),
    "plain again": ours(out=True),
}
OURS = [n for n in VARIANTS if n.startswith(("plain", "lse", "ent", "mas", "top", "all", "rec", "edit"))]
OURS += ["decode plain", "decode all", "decode edit two groups", "decode edit hide"]
_last: list[Setting] = []


def setting(job: Job) -> Setting:
    """Inputs of a job; those of the last job stay."""
    if not _last or (_last[0].length, _last[0].head_size) != (job["length"], job["head_size"]):
        _last.clear()
        torch.cuda.empty_cache()
        _last.append(Setting(job["length"], job["head_size"]))
    return _last[0]
