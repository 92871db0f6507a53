"""GGUF: SmolLM2 and Gemma 3."""

from __future__ import annotations

from pathlib import Path

from headscope.errors import WeightsError
from headscope.models.gguf import read_gguf


def convert(source: Path, package: Path, target: Path) -> None:
    """Dequantise to float32 and keep tokenizer and chat template."""
    from transformers import AutoModelForCausalLM

    made = read_gguf(source, headers=source.parent / "headers")
    if made.weights is None or made.tokenizer is None:
        raise WeightsError(f"{source.name} holds no weights or tokenizer that can be read.")
    config = made.config
    model = AutoModelForCausalLM.from_config(config)
    missing, unexpected = model.load_state_dict(made.weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise WeightsError(f"{source.name} does not fit {config.model_type}: {[*missing, *unexpected][:5]}.")
    model.tie_weights()
    model.save_pretrained(target)
    made.tokenizer.save_pretrained(target)
