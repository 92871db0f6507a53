"""Where attention happens in a loaded model: one site per attention module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from headscope.errors import RequestError, nearest


@dataclass(frozen=True, eq=False)
class Site:
    """One attention module with the modules around it.

    Parameters
    ----------
    stack, layer
        Which attention this is: ``decoder``, ``encoder``, ``cross`` or ``vision``, and the index of its block.
    heads, kv_heads
        Query heads and key-value heads.
    attention
        The module whose forward calls the attention function.
    output
        The output projection; its input is z of all heads side by side.
    mlp
        The MLP's down projection, or None; its input is the MLP activation.
    block
        The transformer block; its input is the residual stream.
    """

    stack: str
    layer: int
    heads: int
    kv_heads: int
    attention: nn.Module
    output: nn.Module
    mlp: nn.Module | None
    block: nn.Module

    def output_weight(self) -> torch.Tensor:
        """Return the output projection as (H, Dv, D): each head's z is multiplied by its slice."""
        weight = self.output.weight
        if not isinstance(weight, torch.Tensor):
            raise RequestError(f"The output projection of layer {self.layer} ({self.stack}) has no weight tensor.")
        if isinstance(self.output, nn.Linear):
            weight = weight.t()  # GPT-2's Conv1D already stores input × output
        return weight.reshape(self.heads, -1, weight.shape[-1])

    def mlp_width(self) -> int:
        """Return the number of units of the MLP activation; 0 where the MLP has none of its own."""
        weight = getattr(self.mlp, "weight", None)
        return weight.numel() // self.output_weight().shape[2] if isinstance(weight, torch.Tensor) else 0


class Sites:
    """All attention sites of a model, by stack."""

    def __init__(self, sites: list[Site], default: str) -> None:
        self.default = default
        self.by_stack: dict[str, dict[int, Site]] = {}
        for site in sites:
            self.by_stack.setdefault(site.stack, {})[site.layer] = site
        self.by_module = {id(site.attention): site for site in sites}

    def stack(self, name: str | None) -> dict[int, Site]:
        """Return layer → site of a stack, by default the model's own."""
        name = name or self.default
        if name not in self.by_stack:
            raise RequestError(f"This model has no {name} attention.{nearest(name, self.by_stack)}")
        return self.by_stack[name]

    def check_heads(self, heads: tuple[tuple[int, int], ...], stack: str | None = None) -> None:
        """Raise RequestError if a (layer, head) pair is not in the stack."""
        found = self.stack(stack)
        for layer, head in heads:
            if layer not in found:
                raise RequestError(
                    f"Head ({layer}, {head}): layers of this model go from {min(found)} to {max(found)}."
                )
            if not 0 <= head < found[layer].heads:
                raise RequestError(
                    f"Head ({layer}, {head}): layer {layer} has heads 0 to {found[layer].heads - 1}. "
                    "Heads are (layer, head) pairs, both counted from 0."
                )
