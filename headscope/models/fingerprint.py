"""One hash for all weights of a model: the identity that results and run folders carry."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def fingerprint(model: Any) -> str:
    """Return the SHA-256 over the names, types, shapes and bytes of all weights, in order of their names.

    Weights that are shared under several names count once, under the first. The device does not matter.

    Parameters
    ----------
    model
        A transformers model, or any ``torch.nn.Module``.
    """
    digest = hashlib.sha256()
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for name, tensor in sorted(model.state_dict().items()):
        same = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and same in seen:
            continue
        seen.add(same)
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    """View a tensor as bytes, without a copy where it lies contiguous in main memory."""
    import torch

    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
