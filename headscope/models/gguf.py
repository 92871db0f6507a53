"""Read models from GGUF files: configuration, weights and tokenizer.

Weights of the families in ``_FIXES`` are dequantised here, 3-4 times faster than by transformers, which serves the
others. Configuration and tokenizer are built by transformers once per file header and kept in the cache.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import UnsupportedError, WeightsError
from headscope.models.cache import cache_folder

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

log = logging.getLogger(__name__)

_UNREADABLE = (ValueError, IndexError, KeyError, OSError, EOFError, OverflowError, MemoryError)


@dataclass(frozen=True)
class GGUFModel:
    """What a GGUF file holds; ``weights`` is None for families whose weights only transformers can read."""

    config: Any
    tokenizer: Any
    weights: dict[str, Tensor] | None


def _unpermute(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undo the reordering of rotary dimensions that the GGUF of a Llama has: pairs back to halves."""
    width, d = weight.shape[0] // heads, weight.shape[1:]
    return weight.reshape(heads, width // 2, 2, *d).swapaxes(1, 2).reshape(weight.shape)


def _llama(name: str, weight: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    if name.endswith(("q_proj.weight", "q_proj.bias")):
        return _unpermute(weight, config.num_attention_heads)
    if name.endswith(("k_proj.weight", "k_proj.bias")):
        return _unpermute(weight, config.num_key_value_heads)
    return weight


def _gemma(name: str, weight: np.ndarray[Any, Any], _config: Any) -> np.ndarray[Any, Any]:
    return weight - 1 if "norm" in name else weight  # stored as the factor itself, 1 + weight


def _plain(_name: str, weight: np.ndarray[Any, Any], _config: Any) -> np.ndarray[Any, Any]:
    return weight


_FIXES: dict[str, Callable[[str, Any, Any], Any]] = {
    "llama": _llama,
    "gemma2": _gemma,
    "gemma3": _gemma,
    "qwen2": _plain,
    "qwen3": _plain,
    "phi3": _plain,
}
"""GGUF architecture → what its weights need after dequantisation."""


def read_gguf(path: Path, *, tokenizer: bool = True, headers: Path | None = None) -> GGUFModel:
    """Read a GGUF file.

    Parameters
    ----------
    path
        The file.
    tokenizer
        Whether to build its tokenizer, too.
    headers
        Folder that keeps what was made of headers; by default in the cache.

    Raises
    ------
    WeightsError
        If the file is truncated or damaged, or its tensors and its header disagree.
    UnsupportedError
        If it holds something that the transformers family has no place for.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        architecture = str(reader.fields["general.architecture"].contents())
        end = max(int(t.data_offset) + int(t.n_bytes) for t in reader.tensors)
    except _UNREADABLE as error:
        raise WeightsError(f"{path} is truncated or not a GGUF file ({error}). Fetch or copy it again.") from error
    if end > path.stat().st_size:
        raise WeightsError(f"{path} is truncated: {path.stat().st_size} bytes, its header needs {end}. Fetch it again.")
    length = min(int(t.data_offset) for t in reader.tensors)
    header = _header(path, length, tokenizer, headers or cache_folder() / "gguf")
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(header, local_files_only=True)
    weights = _weights(path, reader, architecture, config) if architecture in _FIXES else None
    return GGUFModel(config, read_tokenizer(header) if tokenizer else None, weights)


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder, or None if it has none."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        return None
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _header(path: Path, length: int, tokenizer: bool, headers: Path) -> Path:
    """Return a folder with the configuration and tokenizer of a file, by the hash of its header."""
    with path.open("rb") as file:
        key = hashlib.sha256(file.read(length)).hexdigest()[:32]
    target = headers / key
    if (target / "config.json").is_file() and (not tokenizer or (target / ".tokenizer").is_file()):
        return target
    from transformers import AutoConfig, AutoTokenizer

    log.info("Reading the header of %s; this takes some seconds, once.", path.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".header-") as temporary:
        folder = Path(temporary) / "header"
        try:
            config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        except _UNREADABLE as error:
            raise UnsupportedError(f"transformers cannot read the configuration of {path}: {error}") from error
        config.quantization_config = None
        del config.quantization_config
        config.save_pretrained(folder)
        if tokenizer:
            try:
                made = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
                made.save_pretrained(folder)
            except Exception as error:  # noqa: BLE001 - the tokenizers library raises bare exceptions
                log.warning("%s: its tokenizer cannot be built (%s); pass token ids instead of text.", path, error)
            (folder / ".tokenizer").touch()
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
    return target


def _weights(path: Path, reader: Any, architecture: str, config: Any) -> dict[str, Tensor]:
    """Dequantise all tensors under their Hugging Face names, float32."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    fix, weights = _FIXES[architecture], {}
    for name, shape in shapes.items():
        base, _, suffix = name.rpartition(".")
        tensor = stored.pop(f"{names.get_name(base)}.{suffix}", None)
        if tensor is None:
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            raise WeightsError(f"{path} lacks {name} ({names.get_name(base)}.{suffix}). Fetch or copy it again.")
        try:
            array = gguf.dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise UnsupportedError(f"{path}: {tensor.name} is {tensor.tensor_type.name}: {error}") from error
        if array.shape != shape:
            raise WeightsError(f"{path}: {tensor.name} has shape {array.shape}, its header says {shape}.")
        array = fix(name, array, config)
        weights[name] = torch.from_numpy(array.astype("float32", order="C", copy=not array.flags.writeable))
    if stored:
        raise UnsupportedError(
            f"{path} holds {', '.join(sorted(stored)[:5])}, for which {config.model_type} of transformers has no "
            "place. Use the model's safetensors instead."
        )
    return weights
