"""Fused attention kernels for GPUs, in Triton: statistics and edits in one pass.

Nothing here imports Triton before a kernel is wanted.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Literal

import torch

Kernel = Literal["auto", "triton", "sdpa", "reference"]
"""What may be asked to compute statistics."""


def unavailable(device: torch.device) -> str | None:
    """Return why the kernels cannot run on tensors of a device, or None where they can."""
    if not installed():
        return "Triton is not installed: pip install triton."
    if device.type == "cuda" or (device.type == "cpu" and interpreted()):
        return None
    return f"Triton's kernels need a GPU, and these tensors are on {device.type}; TRITON_INTERPRET=1 interprets them."


@functools.cache
def installed() -> bool:
    """Whether Triton is there; not imported to find out."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def failure(error: Exception) -> str | None:
    """Return what to tell of an error if it means that a kernel could not be compiled here, else None."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "TritonError" in kinds or "C compiler" in str(error):
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        return f"A Triton kernel could not be compiled ({type(error).__name__}: {lines[-1].strip()})."
    return None
