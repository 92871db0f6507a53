"""Tiny random models of real families, built from transformers' own classes: for tests and documentation.

They need no network, load in milliseconds, and have weights large enough that attention patterns are far from
uniform, so that a capture or an edit that does nothing shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headscope.errors import ModelError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class _Recipe:
    config: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)


_VOCABULARY = 97
_DECODER = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
_PATTERN = ["sliding_attention", "full_attention"]

_RECIPES: dict[str, _Recipe] = {
    "gpt2": _Recipe(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": _VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 48,
         "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0},
    ),
    "gpt_neox": _Recipe("GPTNeoXConfig", "GPTNeoXForCausalLM", _DECODER),
    "opt": _Recipe(
        "OPTConfig",
        "OPTForCausalLM",
        {"vocab_size": _VOCABULARY, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 128, "word_embed_proj_dim": 32, "bos_token_id": 1, "eos_token_id": None,
         "pad_token_id": 0},
    ),
    "llama": _Recipe("LlamaConfig", "LlamaForCausalLM", _GROUPED),
    "mistral": _Recipe("MistralConfig", "MistralForCausalLM", {**_GROUPED, "sliding_window": 6}),
    "qwen2": _Recipe("Qwen2Config", "Qwen2ForCausalLM", _GROUPED),
    "qwen3": _Recipe("Qwen3Config", "Qwen3ForCausalLM", {**_GROUPED, "head_dim": 16}),
    "gemma2": _Recipe(
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**_GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6, "attn_logit_softcapping": 5.0,
         "layer_types": _PATTERN},
    ),
    "gemma3": _Recipe(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**_GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6, "layer_types": _PATTERN},
    ),
    "phi3": _Recipe("Phi3Config", "Phi3ForCausalLM", _GROUPED),
    "olmo2": _Recipe("Olmo2Config", "Olmo2ForCausalLM", _GROUPED),
    "gpt_oss": _Recipe(
        "GptOssConfig",
        "GptOssForCausalLM",
        {**_GROUPED, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 6,
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
         "layer_types": _PATTERN},
    ),
    "bert": _Recipe("BertConfig", "BertForMaskedLM", {**_DECODER, "type_vocab_size": 2}),
    "vit": _Recipe("ViTConfig", "ViTForImageClassification", {**_VISION, "num_labels": 5}),
    "dinov2": _Recipe("Dinov2Config", "Dinov2Model", {**{k: v for k, v in _VISION.items() if k != "intermediate_size"},
                                                      "mlp_ratio": 2}),
    "t5": _Recipe(
        "T5Config",
        "T5ForConditionalGeneration",
        {"vocab_size": _VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2,
         "num_heads": 4, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0, "pad_token_id": 0,
         "eos_token_id": 1},
    ),
    "whisper": _Recipe(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {"vocab_size": _VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
         "num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 128, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "begin_suppress_tokens": None,
         "suppress_tokens": None},
    ),
}  # fmt: skip

FAMILIES: list[str] = list(_RECIPES)
"""Families that have a tiny model."""


def tiny(family: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Build a tiny random model of a family, in evaluation mode and float32.

    Parameters
    ----------
    family
        One of ``FAMILIES``.
    seed
        Equal seeds give equal weights.
    overrides
        Options of the family's configuration, by their own names.

    Raises
    ------
    ModelError
        If there is no such tiny family.
    """
    import torch
    import transformers

    if family not in _RECIPES:
        raise ModelError(f"There is no tiny model of {family!r}.{nearest(family, FAMILIES)}")
    recipe = _RECIPES[family]
    config = getattr(transformers, recipe.config)(**{**recipe.options, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = getattr(transformers, recipe.model)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * (1.5 / parameter.shape[-1] ** 0.5))
            else:
                parameter.add_(noise * 0.1)
    model.train(False)
    return model
