"""A kernel launch as data: planned from tensors of any device, run on a GPU or in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """One launch.

    Parameters
    ----------
    kernel
        A function under ``triton.jit``.
    grid
        How many programs, in up to three dimensions.
    arguments
        Everything the kernel takes, by name: tensors, numbers, None, and its compile-time constants.
    warps, stages
        Warps of a program, and depth of the software pipeline.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    stages: int

    def run(self) -> None:
        """Launch it."""
        self.kernel[self.grid](**self.arguments, num_warps=self.warps, num_stages=self.stages)
