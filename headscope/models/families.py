"""Where the parts of each family live, as tables; and how a spec is read off a loaded model.

A family without a row is served by ``discover``, which looks for the same parts. A test holds that for every row
the discovery finds what the row says, so a row is needed only where that fails.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from headscope.errors import UnsupportedError
from headscope.models.discovery import (
    Layout,
    StackLayout,
    discover,
    get,
    no_attention,
    unserved_modules,
    uses_interface,
)
from headscope.models.spec import AttentionKind, LayerSpec, ModelSpec, StackSpec

if TYPE_CHECKING:
    from torch import nn

_LLAMA = Layout(
    (StackLayout("decoder", "model.layers", "self_attn", "self_attn.o_proj", "mlp.down_proj"),),
    embed="model.embed_tokens",
    final_norm="model.norm",
    unembed="lm_head",
)

LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2"), _LLAMA),
    "gpt_oss": Layout(  # experts are one fused module: no MLP activation of its own
        (StackLayout("decoder", "model.layers", "self_attn", "self_attn.o_proj", None),),
        embed="model.embed_tokens",
        final_norm="model.norm",
        unembed="lm_head",
    ),
    "gpt2": Layout(
        (
            StackLayout("decoder", "transformer.h", "attn", "attn.c_proj", "mlp.c_proj"),
            StackLayout("cross", "transformer.h", "crossattention", "crossattention.c_proj", "mlp.c_proj"),
        ),
        embed="transformer.wte",
        final_norm="transformer.ln_f",
        unembed="lm_head",
    ),
    "gpt_neox": Layout(
        (StackLayout("decoder", "gpt_neox.layers", "attention", "attention.dense", "mlp.dense_4h_to_h"),),
        embed="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        unembed="lm_head",
    ),
    "opt": Layout(
        (StackLayout("decoder", "model.decoder.layers", "self_attn", "self_attn.out_proj", "fc2"),),
        embed="model.decoder.embed_tokens",
        final_norm="model.decoder.final_layer_norm",
        unembed="lm_head",
    ),
    "bert": Layout(  # each block ends in its own norm: there is no final one
        (
            StackLayout("encoder", "bert.encoder.layer", "attention.self", "attention.output.dense", "output.dense"),
            StackLayout(
                "cross", "bert.encoder.layer", "crossattention.self", "crossattention.output.dense", "output.dense"
            ),
        ),
        embed="bert.embeddings.word_embeddings",
        final_norm=None,
        unembed="cls.predictions.decoder",
    ),
    "vit": Layout(
        (StackLayout("vision", "vit.layers", "attention", "attention.o_proj", "mlp.fc2"),),
        embed=None,
        final_norm="vit.layernorm",
        unembed="classifier",
    ),
    "dinov2": Layout(
        (StackLayout("vision", "dinov2.encoder.layer", "attention", "attention.o_proj", "mlp.fc2"),),
        embed=None,
        final_norm="dinov2.layernorm",
        unembed="classifier",
    ),
    "t5": Layout(
        (
            StackLayout("decoder", "decoder.block", "layer.0.SelfAttention", "layer.0.SelfAttention.o",
                        "layer.2.DenseReluDense.wo"),
            StackLayout("cross", "decoder.block", "layer.1.EncDecAttention", "layer.1.EncDecAttention.o",
                        "layer.2.DenseReluDense.wo"),
            StackLayout("encoder", "encoder.block", "layer.0.SelfAttention", "layer.0.SelfAttention.o",
                        "layer.1.DenseReluDense.wo"),
        ),
        embed="decoder.embed_tokens",
        final_norm="decoder.final_layer_norm",
        unembed="lm_head",
    ),
    "whisper": Layout(
        (
            StackLayout("decoder", "model.decoder.layers", "self_attn", "self_attn.out_proj", "fc2"),
            StackLayout("cross", "model.decoder.layers", "encoder_attn", "encoder_attn.out_proj", "fc2"),
            StackLayout("encoder", "model.encoder.layers", "self_attn", "self_attn.out_proj", "fc2"),
        ),
        embed="model.decoder.embed_tokens",
        final_norm="model.decoder.layer_norm",
        unembed="proj_out",
    ),
}  # fmt: skip
"""``config.model_type`` → where its parts live, in the model with its head (see ``_strip`` for the bare model)."""

_ALIBI = "adds ALiBi biases inside its own attention code and does not go through transformers' attention interface"
_OWN = "computes attention in its own code and does not go through transformers' attention interface"
_STATE = "is a state-space model: it has no attention, so there is no pattern"
_RECURRENT = "is recurrent: it has no attention pattern"

REFUSED: dict[str, str] = {
    "bloom": _ALIBI,
    "mpt": _ALIBI,
    "falcon": _OWN,
    "gptj": _OWN,
    "gpt_neo": _OWN,
    "codegen": _OWN,
    "mamba": _STATE,
    "mamba2": _STATE,
    "falcon_mamba": _STATE,
    "rwkv": _RECURRENT,
    "xlstm": _RECURRENT,
}
"""Families that cannot be served, with the reason. Others are recognised by ``discover``."""

_NO_PATTERN = {"linear_attention": "linear attention", "mamba": "a state-space mixer", "recurrent": "a recurrent mixer",
               "conv": "a convolution", "deltanet": "linear attention", "lightning": "linear attention"}  # fmt: skip


def refuse_family(family: str) -> None:
    """Raise for a family that is known not to be servable, before its weights are read.

    Raises
    ------
    UnsupportedError
        Naming the family, the reason, and what is not available.
    """
    if family in REFUSED:
        raise UnsupportedError(
            f"{family} {REFUSED[family]}. Captures and edits of attention are not available for it. Choose a family "
            "from docs/models.md, such as llama, qwen3, gpt_neox or gpt2."
        )


def build_spec(model: Any, name: str) -> ModelSpec:
    """Read the spec of a transformers model.

    Parameters
    ----------
    model
        A ``PreTrainedModel``; its weights may be on the meta device.
    name
        How the user calls it.

    Raises
    ------
    UnsupportedError
        If the family computes attention outside the interface, or a layer has no pattern (linear attention), or
        the parts do not fit together; the message names the family and the part.
    """
    family = str(model.config.model_type)
    refuse_family(family)
    layout = _resolve(model, LAYOUTS.get(family)) or discover(model)
    stacks: dict[str, StackSpec] = {}
    for stack in layout.stacks:
        layers = _layers(model, stack, family)
        kind = stack.kind
        if kind in ("decoder", "encoder"):  # BERT can be a decoder, Gemma can be an encoder
            kind = "decoder" if layers[0].causal else kind if kind == "encoder" else "encoder"
        stacks[kind] = StackSpec(kind, layers)
    main = next(stacks[kind] for kind in ("decoder", "encoder", "vision", "cross") if kind in stacks)
    config = _config(model, main)
    mlp = get(model, main.layers[0].mlp_act)
    served = [layer.attn for stack in stacks.values() for layer in stack.layers]
    return ModelSpec(
        name=name,
        family=family,
        n_layers=len(main.layers),
        n_heads=max(layer.heads for layer in main.layers),
        n_kv_heads=max(layer.kv_heads for layer in main.layers),
        head_dim=max(layer.head_dim for layer in main.layers),
        d_model=_out_features(model.get_submodule(main.layers[0].o_proj)),
        d_mlp=_in_features(mlp) if mlp is not None else int(getattr(config, "intermediate_size", 0) or 0),
        n_ctx=_context(model, config, main),
        vocab_size=_vocabulary(model, config, layout.embed),
        stacks=stacks,
        embed=layout.embed,
        final_norm=layout.final_norm,
        unembed=layout.unembed,
        unserved=tuple(f"{path} ({cls})" for path, cls in unserved_modules(model).items() if path not in served),
    )


def _strip(model: Any, path: str | None) -> str | None:
    """Return ``path`` as it is called in this model: bare models lack the base model's prefix."""
    if path is None or get(model, path) is not None:
        return path
    bare = path.removeprefix(f"{model.base_model_prefix}.")
    if bare == path:  # dinov2 and others keep no prefix at all in front of a bare model's parts
        bare = path.partition(".")[2]
    return bare if get(model, bare) is not None else None


def _resolve(model: Any, layout: Layout | None) -> Layout | None:
    """Fit a row of the table to this model; None if its stacks are not where the row says."""
    if layout is None:
        return None
    stacks = []
    for stack in layout.stacks:
        blocks = _strip(model, stack.blocks)
        if blocks is not None and get(model, f"{blocks}.0.{stack.attn}") is not None:
            stacks.append(StackLayout(stack.kind, blocks, stack.attn, stack.o_proj, stack.mlp_act))
    if not stacks or not any(stack.kind != "cross" for stack in stacks):
        return None
    embed, norm = _strip(model, layout.embed), _strip(model, layout.final_norm)
    if stacks[0].kind == "encoder" and layout.stacks[0].kind == "decoder":  # an encoder cut out of a pair
        found = discover(model)
        embed, norm = found.embed, found.final_norm
    return Layout(tuple(stacks), embed, norm, layout.unembed if get(model, layout.unembed) is not None else None)


def _layers(model: Any, stack: StackLayout, family: str) -> tuple[LayerSpec, ...]:
    blocks: nn.Module = model.get_submodule(stack.blocks)
    layers = []
    missing: dict[str, list[int]] = {}
    for index, (key, block) in enumerate(blocks.named_children()):
        attn = get(block, stack.attn)
        if attn is None or not uses_interface(type(attn)):
            mixer = type(attn).__name__ if attn is not None else _mixer(block)
            missing.setdefault(mixer, []).append(index)
            continue
        layers.append(_layer(model, stack, f"{stack.blocks}.{key}", index, attn, family))
    if missing:
        what = "; ".join(f"layers {', '.join(map(str, indices))}: {name}" for name, indices in missing.items())
        raise UnsupportedError(
            f"{family} has layers in {stack.blocks} without an attention pattern ({what}). Captures and edits of "
            "attention are not available for models with linear attention, state-space or other such layers."
        )
    if not layers:
        raise UnsupportedError(no_attention(model))
    return tuple(layers)


def _mixer(block: nn.Module) -> str:
    """Name what a block has in place of attention."""
    names = [type(child).__name__ for child in block.children()]
    return next(
        (n for n in names if not any(w in n for w in ("Norm", "MLP", "Mlp", "Dropout", "Expert"))), "no attention"
    )


def _layer(model: Any, stack: StackLayout, block: str, index: int, attn: nn.Module, family: str) -> LayerSpec:
    config = getattr(attn, "config", None) or _text(model.config)
    o_proj = model.get_submodule(f"{block}.{stack.o_proj}")
    width = _in_features(o_proj)
    declared = _first(attn, "num_heads", "n_heads", "num_attention_heads") or _first(config, "num_attention_heads")
    head_dim = _first(attn, "v_head_dim", "head_dim", "attention_head_size", "key_value_proj_dim", "head_size") or (
        width // declared if declared else None
    )
    if not head_dim or width % head_dim:
        raise UnsupportedError(
            f"{family}: cannot tell the heads of {block}.{stack.attn}: its output projection reads {width} numbers, "
            f"which is no multiple of the head size {head_dim}."
        )
    heads = width // head_dim
    attention, window = _visible(config, attn, index, family, stack)
    causal = stack.kind != "cross" and bool(getattr(attn, "is_causal", stack.kind == "decoder"))
    softcap = _first(attn, "attn_logit_softcapping", "softcap", "attn_logit_softcap")
    return LayerSpec(
        index=index,
        heads=heads,
        kv_heads=_kv_heads(attn, config, heads, head_dim),
        head_dim=head_dim,
        attention=attention,
        window=window,
        softcap=float(softcap) if softcap else None,
        sinks=getattr(attn, "sinks", None) is not None,
        causal=causal,
        attn=f"{block}.{stack.attn}",
        o_proj=f"{block}.{stack.o_proj}",
        mlp_act=f"{block}.{stack.mlp_act}" if stack.mlp_act and get(model, f"{block}.{stack.mlp_act}") else None,
        block=block,
        position_bias=hasattr(attn, "relative_attention_bias") or hasattr(attn, "has_relative_attention_bias"),
    )


def _kv_heads(attn: Any, config: Any, heads: int, head_dim: int) -> int:
    groups = _first(attn, "num_key_value_groups", "num_kv_groups")
    if groups:
        return int(heads // groups)
    own = _first(attn, "num_key_value_heads", "num_kv_heads", "n_kv_heads")
    if own:
        return int(own)
    for name in ("k_proj", "key", "k"):
        projection = getattr(attn, name, None)
        if projection is not None and hasattr(projection, "weight"):
            return max(1, _out_features(projection) // head_dim)
    return int(_first(config, "num_key_value_heads") or heads)


def _visible(config: Any, attn: Any, index: int, family: str, stack: StackLayout) -> tuple[AttentionKind, int | None]:
    """Read which keys a layer's queries can see."""
    if stack.kind == "cross":
        return "full", None
    types = getattr(config, "layer_types", None)
    if not types or index >= len(types):
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        return ("sliding", int(window)) if window and stack.kind == "decoder" else ("full", None)
    kind = str(types[index])
    if kind == "sliding_attention":
        window = getattr(attn, "sliding_window", None) or config.sliding_window
        return "sliding", int(window)
    if kind == "chunked_attention":
        return "chunked", int(config.attention_chunk_size)
    if kind in ("full_attention", "attention", "global"):
        return "full", None
    reason = next((text for word, text in _NO_PATTERN.items() if word in kind), None)
    raise UnsupportedError(
        f"{family}: layer {index} is of type {kind!r}"
        + (f", {reason}, which has no attention pattern" if reason else ", which headscope does not know")
        + ". Captures and edits of attention are not available for this model."
    )


def _text(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _config(model: Any, stack: StackSpec) -> Any:
    attn = model.get_submodule(stack.layers[0].attn)
    return getattr(attn, "config", None) or (
        getattr(model.config, "vision_config", model.config) if stack.kind == "vision" else _text(model.config)
    )


def _first(thing: Any, *names: str) -> Any:
    """Return the first of these attributes that is there and set."""
    return next((value for value in (getattr(thing, name, None) for name in names) if value), None)


def _in_features(module: Any) -> int:
    """Width that a projection reads; GPT-2's ``Conv1D`` stores its weight the other way round."""
    return int(module.in_features if hasattr(module, "in_features") else module.weight.shape[0])


def _out_features(module: Any) -> int:
    return int(module.out_features if hasattr(module, "out_features") else module.weight.shape[-1])


def _context(model: Any, config: Any, stack: StackSpec) -> int | None:
    if stack.kind == "vision":
        size, patch = _pair(getattr(config, "image_size", None)), _pair(getattr(config, "patch_size", None))
        return (size[0] // patch[0]) * (size[1] // patch[1]) + 1 if size and patch else None
    if any(layer.position_bias for layer in stack.layers):
        return None
    names: Iterable[str] = ("max_target_positions", "max_position_embeddings", "n_positions", "max_sequence_length")
    length = _first(config, *names) or _first(_text(model.config), *names)
    return int(length) if length else None


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    return (int(size[0]), int(size[1])) if isinstance(size, (list, tuple)) else (int(size), int(size))


def _vocabulary(model: Any, config: Any, embed: str | None) -> int | None:
    table = get(model, embed)
    if table is not None and getattr(table, "weight", None) is not None:
        weight: Any = table.weight
        return int(weight.shape[0])
    return None
