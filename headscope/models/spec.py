"""What a model is made of, as data: stacks of layers, heads, and where each part lives.

Module paths are strings for ``module.get_submodule``, so a spec can be compared, stored and printed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from headscope.errors import RequestError, UnsupportedError

Kind = Literal["decoder", "encoder", "cross", "vision"]
AttentionKind = Literal["full", "sliding", "chunked", "linear"]


@dataclass(frozen=True)
class LayerSpec:
    """One attention layer.

    Parameters
    ----------
    index
        Position in its stack, from 0.
    heads, kv_heads
        Query heads H, and key-value heads Hkv (fewer under grouped queries).
    head_dim
        Width of one head's output z, so that the output projection reads ``heads * head_dim`` numbers.
    attention
        Which keys a query can see: all, a window of the last ``window``, or its own chunk of ``window`` positions.
    window
        Size of the window or chunk in tokens, the query's own position included; None where all keys are seen.
    softcap
        Logits pass through ``softcap * tanh(logit / softcap)``; None where they do not.
    sinks
        Whether each head has a learned sink logit, so that a row of the pattern sums to less than one.
    causal
        Whether a query sees only keys at or before its own position.
    attn, o_proj, mlp_act, block
        Paths: the module that calls the attention function; its output projection, whose input is z; the module
        whose *input* is the MLP activation (None where experts are fused into one module); the whole block.
    position_bias
        Whether learned biases by relative position are added to the logits (T5).
    """

    index: int
    heads: int
    kv_heads: int
    head_dim: int
    attention: AttentionKind
    window: int | None
    softcap: float | None
    sinks: bool
    causal: bool
    attn: str
    o_proj: str
    mlp_act: str | None
    block: str
    position_bias: bool = False

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class StackSpec:
    """The layers of one kind of attention, in order. Cross-attention is a stack of its own."""

    kind: Kind
    layers: tuple[LayerSpec, ...]

    def __len__(self) -> int:
        return len(self.layers)


@dataclass(frozen=True)
class ModelSpec:
    """A model's stacks and sizes; sizes refer to the default stack (decoder, else encoder, else vision).

    Parameters
    ----------
    name, family
        The name that the user loaded it by, and ``config.model_type``.
    n_layers, n_heads, n_kv_heads, head_dim, d_model, d_mlp
        Sizes of the default stack. Where layers differ, the largest; each ``LayerSpec`` has its own.
    n_ctx
        Longest input in tokens; None where nothing in the architecture limits it.
    vocab_size
        Rows of the token embedding; None for models that read no tokens.
    stacks
        By kind.
    embed, final_norm, unembed
        Paths; None where the model has no such part.
    unserved
        Attention modules outside these stacks that the engine does not see, as ``"path (Class)"``.
    """

    name: str
    family: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int
    d_mlp: int
    n_ctx: int | None
    vocab_size: int | None
    stacks: dict[str, StackSpec]
    embed: str | None
    final_norm: str | None
    unembed: str | None
    unserved: tuple[str, ...] = ()

    @property
    def default_stack(self) -> str:
        """Kind of the stack that requests mean when they name none."""
        return next(kind for kind in ("decoder", "encoder", "vision", "cross") if kind in self.stacks)

    def stack(self, kind: str | None = None) -> StackSpec:
        """Return the stack of this kind, by default the default stack.

        Raises
        ------
        UnsupportedError
            If the model has no such stack.
        """
        kind = kind or self.default_stack
        if kind not in self.stacks:
            raise UnsupportedError(
                f"{self.name} ({self.family}) has no {kind} attention. It has: {', '.join(sorted(self.stacks))}."
            )
        return self.stacks[kind]

    def layers(self, kind: str | None = None) -> tuple[LayerSpec, ...]:
        """Return the layers of a stack, by default of the default stack."""
        return self.stack(kind).layers

    def heads(self, kind: str | None = None) -> list[tuple[int, int]]:
        """Return all (layer, head) pairs of a stack, in order."""
        return [(layer.index, head) for layer in self.layers(kind) for head in range(layer.heads)]

    def check_head(self, layer: int, head: int, kind: str | None = None) -> LayerSpec:
        """Return the layer of a head.

        Raises
        ------
        RequestError
            If the layer or the head is out of range; the message gives the range.
        """
        layers = self.layers(kind)
        if not 0 <= layer < len(layers):
            raise RequestError(
                f"Layer {layer} is out of range: the {kind or self.default_stack} of {self.name} has layers "
                f"0 to {len(layers) - 1}."
            )
        if not 0 <= head < layers[layer].heads:
            raise RequestError(
                f"Head {head} of layer {layer} is out of range: that layer of {self.name} has heads "
                f"0 to {layers[layer].heads - 1}."
            )
        return layers[layer]

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain data for JSON."""
        return dataclasses.asdict(self)
