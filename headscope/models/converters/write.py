"""Write a model's folder: configuration and safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.models.weights import SINGLE

if TYPE_CHECKING:
    from collections.abc import Mapping


def write_model(target: Path, config: Any, architecture: str, weights: Mapping[str, Any]) -> None:
    """Write weights under the names of a transformers class, as float32, with its configuration.

    Parameters
    ----------
    target
        Folder to make.
    config
        A transformers configuration.
    architecture
        Name of the class that reads the weights.
    weights
        Arrays by name.
    """
    from safetensors.numpy import save_file

    target.mkdir(parents=True, exist_ok=True)
    config.architectures = [architecture]
    config.save_pretrained(target)
    arrays = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in weights.items()}
    save_file(arrays, target / SINGLE, metadata={"format": "pt"})
