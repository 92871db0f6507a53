"""Weights are read from safetensors only, and only when they are whole and finite."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import ModelError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")


def check_folder(folder: Path) -> list[Path]:
    """Return the safetensors files of a model's folder, after a look at each header.

    Raises
    ------
    ModelError
        If there is no configuration.
    WeightsError
        If there are no safetensors weights (pickle files are never loaded, as they can run code), or a file is
        missing, truncated or unreadable; the message names it.
    """
    if not (folder / "config.json").is_file():
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ModelError(f"{folder} is not a model: it has no config.json (it holds {inside}).")
    files = _shards(folder)
    if not files:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise WeightsError(
                f"{folder} has its weights only as pickle ({', '.join(pickles)}), which can run code when it is read "
                "and is never loaded. Convert them on a machine that may trust them: load the model there with "
                "transformers and call save_pretrained(folder), which writes safetensors."
            )
        raise WeightsError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}.")
    for file in files:
        check_file(file)
    return files


def _shards(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            names = sorted(set(index["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightsError(
                f"{folder / INDEX} is not an index of weights: {error}. Fetch the model again."
            ) from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise WeightsError(f"{folder} lacks {', '.join(missing)}, which {INDEX} lists. Fetch the model again.")
        return [folder / name for name in names]
    return [folder / SINGLE] if (folder / SINGLE).is_file() else []


def check_file(file: Path) -> list[str]:
    """Return the names of a safetensors file's tensors; its header must account for every byte.

    Raises
    ------
    WeightsError
        If the file is truncated, is no safetensors file, or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file} is truncated or damaged ({error}). Fetch or copy it again; it should be a safetensors file."
        ) from error


def check_finite(weights: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises
    ------
    WeightsError
        Naming the first such tensor and how many of its values are not finite.
    """
    import torch

    for name, tensor in weights:
        if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
            continue
        # The sum is not finite if any value is not; it can also overflow, so look again before refusing.
        if torch.isfinite(tensor.sum(dtype=torch.float32)):
            continue
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise WeightsError(
                f"Weights are not finite: {name} holds {bad} NaN or infinite values out of {tensor.numel()}. "
                "The file is damaged, or the model was saved after training diverged; use another copy."
            )


def check_loaded(info: dict[str, Any], source: str) -> list[str]:
    """Refuse a model that transformers had to complete with random weights; return names that no attention needs.

    Raises
    ------
    WeightsError
        Naming tensors that the model needs and the files lack, or whose shapes differ.
    """
    missing = sorted(info.get("missing_keys", ()))
    mismatched = sorted(str(item[0] if isinstance(item, tuple) else item) for item in info.get("mismatched_keys", ()))
    unused = [name for name in missing if "pooler" in name]  # a pooler is in no attention's way
    needed = [name for name in missing if name not in unused]
    if needed or mismatched:
        what = "lack" if needed else "have other shapes than the configuration says for"
        names = needed or mismatched
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise WeightsError(
            f"The weights of {source} {what} {shown}. They would be random; check that the weights and config.json "
            "belong together, or fetch the model again."
        )
    return unused
