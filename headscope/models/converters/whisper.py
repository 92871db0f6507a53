"""Whisper tiny.en from its CTranslate2 conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from headscope.models.converters.ctranslate2 import read_variables
from headscope.models.converters.write import write_model

_START, _END, _NO_TIMESTAMPS = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
_NORM = {"gamma": "weight", "beta": "bias"}

Arrays = dict[str, np.ndarray[Any, Any]]


def convert(source: Path, package: Path, target: Path) -> None:
    """Write a ``WhisperForConditionalGeneration``, its tokenizer, its feature extractor and generation settings."""
    from transformers import (
        GenerationConfig,
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperFeatureExtractor,
    )

    variables = read_variables(source)
    folder = source.parent
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token=_END,
        eos_token=_END,
        unk_token=_END,
        pad_token=_END,
    )
    ids = tokenizer.get_vocab()
    start, end, silent = ids[_START], ids[_END], ids[_NO_TIMESTAMPS]
    suppress = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    vocabulary, width = variables["decoder/embeddings/weight"].shape
    heads = int(variables["decoder/num_heads"])
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=_count(variables, "encoder"),
        decoder_layers=_count(variables, "decoder"),
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=variables["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_ffn_dim=variables["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        num_mel_bins=variables["encoder/conv1/weight"].shape[1],
        max_source_positions=variables["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=variables["decoder/position_encodings/encodings"].shape[0],
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
    )
    write_model(target, config, "WhisperForConditionalGeneration", weights(variables))
    GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
        no_timestamps_token_id=silent,
        is_multilingual=False,
        return_timestamps=False,
        max_length=config.max_target_positions,
        suppress_tokens=suppress["suppress_ids"],
        begin_suppress_tokens=suppress["suppress_ids_begin"],
        alignment_heads=suppress["alignment_heads"],
    ).save_pretrained(target)
    tokenizer.save_pretrained(target)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(target)


def _count(variables: Arrays, part: str) -> int:
    return len({name.split("/")[1] for name in variables if name.startswith(f"{part}/layer_") and "/ffn/" in name})


def weights(variables: Arrays) -> Arrays:
    """Return the variables under the names of transformers.

    Self-attention's ``linear_0`` is q, k and v in one, cross-attention's ``linear_1`` is k and v. Keys have no bias in
    transformers; the conversion stores zeros for it.
    """
    found: Arrays = {}
    for name, array in variables.items():
        part, *rest = name.split("/")
        if array.ndim == 0 or name == "decoder/projection/weight":  # settings; the tied unembedding
            continue
        root = f"model.{part}"
        if rest[0] == "embeddings":
            found[f"{root}.embed_tokens.weight"] = array
        elif rest[0] == "position_encodings":
            found[f"{root}.embed_positions.weight"] = array
        elif rest[0] == "layer_norm":
            found[f"{root}.layer_norm.{_NORM[rest[1]]}"] = array
        elif rest[0].startswith("conv"):
            found[f"{root}.{rest[0]}.{rest[1]}"] = array
        else:
            found |= _layer(f"{root}.layers.{rest[0].removeprefix('layer_')}", rest[1], rest[2:], array)
    return found


def _layer(block: str, module: str, rest: list[str], array: np.ndarray[Any, Any]) -> Arrays:
    if module == "ffn":
        if rest[0] == "layer_norm":
            return {f"{block}.final_layer_norm.{_NORM[rest[1]]}": array}
        return {f"{block}.fc{int(rest[0][-1]) + 1}.{rest[1]}": array}
    attention = "self_attn" if module == "self_attention" else "encoder_attn"
    if rest[0] == "layer_norm":
        return {f"{block}.{attention}_layer_norm.{_NORM[rest[1]]}": array}
    fused = {("self_attn", "linear_0"): "qkv", ("encoder_attn", "linear_0"): "q", ("encoder_attn", "linear_1"): "kv"}
    letters = fused.get((attention, rest[0]))
    if letters is None:
        return {f"{block}.{attention}.out_proj.{rest[1]}": array}
    parts = zip(letters, np.split(array, len(letters)), strict=True)
    return {
        f"{block}.{attention}.{letter}_proj.{rest[1]}": piece
        for letter, piece in parts
        if (letter, rest[1]) != ("k", "bias")
    }
