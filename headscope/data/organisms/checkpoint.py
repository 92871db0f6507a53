"""An organism's weights as a model of transformers: GPT-2 or Llama, ordinary in every way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headscope.data.organisms.blueprint import (
    D_MLP,
    D_MODEL,
    HEAD_DIM,
    KV_HEADS,
    N_CTX,
    N_HEADS,
    N_LAYERS,
    ROPE_THETA,
    Array,
    Kind,
)
from headscope.data.organisms.vocabulary import Vocabulary
from headscope.data.organisms.weights import Weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def build_model(kind: Kind, weights: Weights, vocabulary: Vocabulary) -> PreTrainedModel:
    """Return a float32 model of transformers, in evaluation mode, that carries the weights."""
    import torch

    with torch.random.fork_rng(devices=[]):  # the classes draw initial weights; leave the caller's seed alone
        model = _gpt2(weights, vocabulary) if kind == "gpt2" else _llama(weights, vocabulary)
    model.eval().requires_grad_(False)
    return model


def _fill(model: PreTrainedModel, tensors: dict[str, Array]) -> PreTrainedModel:
    """Copy the tensors in; weights that are not named keep what a norm or bias starts with (1 and 0)."""
    import torch

    state: dict[str, torch.Tensor] = {
        name: torch.from_numpy(np.ascontiguousarray(array)).float() for name, array in tensors.items()
    }
    for name, tensor in model.state_dict().items():
        if name not in state:
            state[name] = torch.zeros_like(tensor) if name.endswith("bias") else torch.ones_like(tensor)
    model.load_state_dict(state, strict=True)
    return model


def _gpt2(weights: Weights, vocabulary: Vocabulary) -> PreTrainedModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=N_CTX,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_inner=D_MLP,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
        pad_token_id=vocabulary.pad,
    )
    tensors = {
        "transformer.wte.weight": weights.embed,
        "transformer.wpe.weight": weights.positions,
        "lm_head.weight": weights.unembed,
    }
    for index, layer in enumerate(weights.layers):
        prefix = f"transformer.h.{index}."
        tensors |= {
            prefix + "attn.c_attn.weight": np.concatenate([layer.q, layer.k, layer.v]).T,
            prefix + "attn.c_proj.weight": layer.o.T,
            prefix + "mlp.c_fc.weight": layer.gate.T,
            prefix + "mlp.c_proj.weight": layer.down.T,
        }
    return _fill(GPT2LMHeadModel(config), tensors)


def _llama(weights: Weights, vocabulary: Vocabulary) -> PreTrainedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=N_CTX,
        hidden_size=D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=KV_HEADS["llama"],
        head_dim=HEAD_DIM,
        intermediate_size=D_MLP,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=False,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
        pad_token_id=vocabulary.pad,
    )
    tensors = {
        "model.embed_tokens.weight": weights.embed,
        "lm_head.weight": weights.unembed,
    }
    for index, layer in enumerate(weights.layers):
        prefix = f"model.layers.{index}."
        tensors |= {
            prefix + "self_attn.q_proj.weight": layer.q,
            prefix + "self_attn.k_proj.weight": layer.k,
            prefix + "self_attn.v_proj.weight": layer.v,
            prefix + "self_attn.o_proj.weight": layer.o,
            prefix + "mlp.gate_proj.weight": layer.gate,
            prefix + "mlp.up_proj.weight": layer.up,
            prefix + "mlp.down_proj.weight": layer.down,
        }
    return _fill(LlamaForCausalLM(config), tensors)
