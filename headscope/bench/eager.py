"""Steering the way the papers' code does it: eager attention, with the T×T mask or pattern of layers that are edited.

Each method goes over the same tensors as its published code: PASTA copies the mask, and copies it again for all heads;
ZeroTuning copies the pattern and makes a second of factors; SpotLight's hook takes logarithms of the whole pattern,
shifts them, and repeats softmax and the product with the values; ACT and VAR take a copy of each head in a loop.
Knock-out and temperature, which any code would do alike, change the mask and the logits. The arithmetic is the one that
headscope's methods state, with what was found in the prefill kept in decoding, so that both must give the same logits.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "headscope_bench_eager"


class Steered:
    """One method on one prompt, in force inside ``steering``.

    Parameters
    ----------
    method
        A method of ``headscope.interventions``: its parameters are read.
    regions
        Positions of the prompt's regions, each one unbroken run.
    length
        Tokens of the prompt.
    """

    def __init__(self, method: Any, regions: dict[str, list[int]], length: int) -> None:
        self.method, self.length = method, length
        self.regions = {name: slice(where[0], where[-1] + 1) for name, where in regions.items()}
        self.heads: dict[int, list[int]] = defaultdict(list)
        for layer, head in method.heads:
            self.heads[layer].append(head)
        self.found: dict[Any, Tensor] = {}
        self.change = getattr(self, f"_{method.name}")

    # -- on the mask (1, H, Tq, Tk), or the logits -------------------------------------------------------------

    def _pasta(self, mask: Tensor, heads: list[int]) -> None:
        region = self.regions[self.method.region[0]]
        mask[0, heads, :, : region.start] += math.log(self.method.alpha)
        mask[0, heads, :, region.stop : self.length] += math.log(self.method.alpha)

    def _knockout(self, mask: Tensor, heads: list[int]) -> None:
        mask[0, heads, :, self.regions[self.method.source[0]]] = torch.finfo(mask.dtype).min

    def _temperature(self, logits: Tensor, heads: list[int]) -> None:
        logits[0, heads] /= self.method.temperature

    # -- on the pattern (1, H, Tq, Tk) -------------------------------------------------------------------------

    def _zerotuning(self, pattern: Tensor, layer: int) -> Tensor:
        heads, changed = self.heads[layer], pattern.clone()
        factors = torch.ones_like(changed)
        factors[:, heads, :, 0] = self.method.gamma
        changed = changed * factors
        changed[:, heads] = changed[:, heads] / changed[:, heads].sum(-1, keepdim=True)
        return changed

    def _spotlight(self, pattern: Tensor, layer: int) -> Tensor:
        heads, changed = self.heads[layer], pattern.clone()
        member = torch.zeros(pattern.shape[-1])
        member[self.regions[self.method.region[0]]] = 1
        share = (changed * member).sum(-1, keepdim=True)
        bias = torch.where((share > 0) & (share < self.method.psi), torch.log(self.method.psi / share), 0.0)
        others = torch.ones(pattern.shape[1], dtype=torch.bool)
        others[heads] = False
        bias[:, others] = 0
        logits = torch.log(changed)
        logits += bias * member
        return nn.functional.softmax(logits, dim=-1, dtype=torch.float32)

    def _act(self, pattern: Tensor, layer: int) -> Tensor:
        keys, beta = pattern.shape[-1], self.method.beta
        for head in self.heads[layer]:
            rows = pattern[0, head]
            if (layer, head) not in self.found:
                mean = rows.sum(0) / torch.arange(keys, 0, -1)
                self.found[layer, head] = (mean > self.method.threshold).nonzero().flatten()[1:]
            sinks = self.found[layer, head]
            others = rows.clone()
            freed = rows[:, sinks].sum(1, keepdim=True) * (1 - beta)
            rows[:, sinks] *= beta
            others[:, sinks] = 0
            total = others.sum(1, keepdim=True)
            pattern[0, head] = torch.where(total > 0, rows + freed * (others / total), rows)
        return pattern

    def _var(self, pattern: Tensor, layer: int) -> Tensor:
        sinks, image = self.found[layer], self.regions[self.method.region]
        inside = sinks[(sinks >= image.start) & (sinks < image.stop)]
        seen = pattern[..., image].sum(-1)
        portion = pattern[..., inside].sum(-1) / seen.clamp(min=1e-30)
        centred = (portion > 0) & (portion <= self.method.max_sink_portion) & (seen >= self.method.min_total)
        if pattern.shape[2] > 1:
            centred[..., : image.stop] = False
        changed, keep = pattern.clone(), self.method.keep_fraction
        for head in self.heads[layer]:
            queries = centred[0, head].nonzero().flatten()
            rows = changed[0, head, queries]
            copied = rows.clone()
            rows[:, sinks] *= keep
            freed = copied[:, sinks].sum(1, keepdim=True) * (1 - keep)
            copied[:, sinks] = 0
            total = copied[:, image].sum(1, keepdim=True)
            given = freed * (copied[:, image] / total.clamp(min=1e-30))
            rows[:, image] += given
            changed[0, head, queries] = torch.where(total > 0, rows, changed[0, head, queries])
        return changed

    def watch(self, layer: int, stream: Tensor) -> None:
        """Look at the input (B, T, width) of a layer in the prefill: VAR's sinks."""
        if layer not in self.found:
            normal = stream / stream.pow(2).mean(-1, keepdim=True).sqrt()
            peaks = normal[0][:, list(self.method.dimensions)].abs().amax(-1)
            self.found[layer] = (peaks > self.method.tau).nonzero().flatten()


_ACTIVE: list[Steered] = []


@contextlib.contextmanager
def steering(hf: Any, steered: Steered) -> Iterator[None]:
    """Put a method in force in a Llama whose attention implementation is ``NAME``."""
    handles = []
    if steered.method.name == "var":
        for layer, block in enumerate(hf.model.layers):
            handles.append(block.register_forward_pre_hook(lambda m, args, layer=layer: steered.watch(layer, args[0])))
    _ACTIVE.append(steered)
    try:
        yield
    finally:
        _ACTIVE.pop()
        for handle in handles:
            handle.remove()


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attend as transformers' eager attention does, with the active method's change on the way."""
    steered = _ACTIVE[-1]
    name, layer = steered.method.name, module.layer_idx
    heads = steered.heads.get(layer, [])
    key = key.repeat_interleave(module.num_key_value_groups, 1)
    value = value.repeat_interleave(module.num_key_value_groups, 1)
    mask = torch.zeros(1, 1, query.shape[2], key.shape[2]) if attention_mask is None else attention_mask
    if heads and name in ("pasta", "knockout"):
        mask = mask.clone().expand(-1, query.shape[1], -1, -1).clone()
        steered.change(mask, heads)
    logits = torch.matmul(query, key.transpose(2, 3)) * scaling
    logits = logits + mask[..., : key.shape[2]]
    if heads and name == "temperature":
        steered.change(logits, heads)
    pattern = nn.functional.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
    if heads and name not in ("pasta", "knockout", "temperature"):
        if name == "spotlight":  # a hook behind the module: the module's own output is made, and thrown away
            torch.matmul(pattern, value)
        pattern = steered.change(pattern, layer)
    return torch.matmul(pattern, value).transpose(1, 2).contiguous(), pattern


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)
