"""Choose how the statistics of one attention call are computed.

Left alone, Triton's fused kernels serve GPUs and the row sweep CPUs. ``HEADSCOPE_KERNEL``, or ``using``, forces one.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from headscope.errors import RequestError, UnsupportedError
from headscope.kernels import compiled, reference, sdpa
from headscope.kernels.compiled import library
from headscope.kernels.edits import Reweight
from headscope.kernels.inputs import AttentionInputs, accumulation_dtype
from headscope.kernels.rows import Stats, Wants, sweep
from headscope.kernels.triton import Kernel, failure, unavailable

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

_FORCED: ContextVar[Kernel | None] = ContextVar("headscope_kernel", default=None)
_FAILED: set[str] = set()
"""Why Triton kernels could not be had, as told already."""


@contextmanager
def using(kernel: Kernel) -> Iterator[None]:
    """Force a kernel inside the block: ``"triton"``, ``"sdpa"``, ``"reference"``, or ``"auto"`` for the usual choice.

    ``"sdpa"`` is PyTorch's fused kernels and the row sweep; ``"reference"`` forms the whole pattern.
    """
    token = _FORCED.set(_checked(kernel))
    try:
        yield
    finally:
        _FORCED.reset(token)


def chosen() -> Kernel:
    """Return the kernel that is asked for."""
    return _FORCED.get() or _checked(os.environ.get("HEADSCOPE_KERNEL") or "auto")


def _checked(name: str) -> Kernel:
    for kernel in get_args(Kernel):
        if name == kernel:
            return kernel  # type: ignore[no-any-return]
    raise RequestError(f"There is no kernel {name!r} (HEADSCOPE_KERNEL): choose from {', '.join(get_args(Kernel))}.")


def compute(inp: AttentionInputs, wants: Wants, queries: Tensor | None = None) -> Stats:
    """Return what ``wants`` names for all queries, or for ``queries`` (B, n), by the fastest exact way.

    - Output and log-normaliser alone: the fused kernel.
    - Everything on a GPU: one pass of Triton's kernels.
    - Everything on a CPU with the compiled row kernel, and whatever needs whole rows: one sweep.
    - Otherwise (no Triton, or no compiler) flash identities, one fused pass each.
    """
    if chosen() == "reference":
        return reference.statistics(inp, wants, queries)
    fused = queries is None and sdpa.available(inp)
    bare = wants == Wants(out=wants.out, lse=wants.lse)
    if chosen() == "triton" or not (fused and bare):
        stats: Stats | None = _triton(inp, wants, queries, lambda: _kernels().compute(inp, wants, queries))
        if stats is not None:
            return stats
    if not fused:
        return sweep(inp, wants, queries)
    by_rows = inp.q.device.type == "cpu" and library() is not None and inp.q.dtype != torch.float64
    if bare:
        return _identities(inp, wants)
    needs_rows = wants.top or wants.rows or wants.groups is not None or wants.lookup is not None or wants.pooled_max
    if by_rows or needs_rows:
        return sweep(inp, wants)
    return _identities(inp, wants)


def fused_gradient(inp: AttentionInputs, cotangent: Tensor) -> Tensor | None:
    """Return Σ_q A·dA of each key (B, H, Tk) by Triton's kernel, or None where it does not serve."""
    return _triton(inp, Wants(lse=True), None, lambda: _kernels().gradient_received(inp, cotangent))


def fused_tile(
    inp: AttentionInputs,
    rows: tuple[int, int],
    cols: tuple[int, int],
    bins: tuple[int, int] | None,
    reduce: str,
    lse: Tensor | None,
) -> tuple[Tensor, Tensor] | None:
    """Return a rectangle of the pattern (B, H, rows, cols), or bins of it, by Triton's kernel, or None.

    The log-normaliser (B, H, Tq), worked out where it is not given, comes back beside it, for the next rectangle.
    """
    if inp.edits:
        return None
    return _triton(inp, Wants(lse=True), None, lambda: _kernels().rectangle(inp, rows, cols, bins, reduce, lse))


def _kernels() -> Any:
    """Import what is made of Triton's kernels, when one is wanted."""
    from headscope.kernels.triton import compute

    return compute


def _for_triton(device: torch.device) -> bool:
    """Whether calls on a device are Triton's, if it can be had."""
    return chosen() == "triton" or (chosen() == "auto" and device.type == "cuda")


def _triton(inp: AttentionInputs, wants: Wants, queries: Tensor | None, work: Callable[[], Found]) -> Found | None:
    """Return what ``work`` computes by Triton's kernels, or None where they do not serve the call or the machine."""
    if not _for_triton(inp.q.device):
        return None
    why = unavailable(inp.q.device)
    if why is not None:
        if chosen() == "triton":
            raise UnsupportedError(f"HEADSCOPE_KERNEL=triton: {why}")
        _tell(why)
        return None
    why = _kernels().refusal(inp, wants, queries)
    if why is not None:
        logger.debug("not by the Triton kernels: %s", why)
        return None
    try:
        return work()
    except Exception as error:
        why = failure(error)
        if why is None:
            raise
        _tell(why)
        return None


def _tell(why: str) -> None:
    if why not in _FAILED:
        _FAILED.add(why)
        warnings.warn(f"{why} PyTorch's kernels are used instead: slower, and as exact.", stacklevel=4)


def step(inp: AttentionInputs, heads: Tensor) -> Tensor:
    """Return the output (B, n, 1, Dv) of some heads (n,) in a decoding step, Tq = 1, under edits.

    There is nothing to stream, and little to hide overhead behind: one call of the compiled kernel for one edit of
    plain attention, the most usual case by far; Triton's kernels on a GPU; and plainly otherwise.
    """
    kernel = library() if inp.q.device.type == "cpu" and chosen() in ("auto", "sdpa") else None
    if kernel is not None and _simple(inp):
        return compiled.step(kernel, inp, heads, inp.edits[0])
    part, dtype = inp.select(heads), accumulation_dtype(inp.q.dtype)
    wants = Wants(out=True)
    stats: Stats | None = _triton(part, wants, None, lambda: _kernels().compute(part, wants))
    if stats is not None and stats.out is not None:
        return stats.out
    working = replace(part, q=part.q.to(dtype), k=part.k.to(dtype), v=part.v.to(dtype))
    return reference.attend(working).to(inp.v.dtype)


def _simple(inp: AttentionInputs) -> bool:
    if len(inp.edits) != 1 or inp.edits[0].rows is not None or inp.bias is not None or inp.softcap is not None:
        return False
    if isinstance(inp.edits[0], Reweight) and inp.edits[0].count >= compiled.GROUPS:
        return False
    mask = inp.mask is None or (
        inp.mask.dtype == torch.bool and inp.mask.shape[1:3] == (1, 1) and inp.mask.stride(3) == 1
    )
    dense = all(x.dtype == torch.float32 and x.stride(3) == 1 for x in (inp.q, inp.k, inp.v))
    return mask and dense and inp.sinks is None


def _identities(inp: AttentionInputs, wants: Wants) -> Stats:
    stats = Stats()
    if wants.out or wants.lse or wants.received:
        stats.out, stats.lse = sdpa.attend(inp)
    if wants.entropy:
        stats.entropy = sdpa.entropy(inp)
    if wants.project is not None:
        stats.project = sdpa.weighted(inp, wants.project)
    if wants.received:
        lse = stats.lse if inp.q.dtype == torch.float32 else sweep_lse(inp)
        assert lse is not None
        stats.received = sdpa.received(inp, lse)
    return stats


def sweep_lse(inp: AttentionInputs) -> Tensor:
    """Return the log-normaliser in full precision for half-precision inputs (B, H, Tq)."""
    q, k = inp.q.float(), inp.k.float()
    return sdpa.attend(replace(inp, q=q, k=k, v=inp.v.float()))[1]


def engine(device: torch.device | str | None = None) -> str:
    """Name what computes statistics on a device, the CPU by default, for provenance."""
    device = torch.device(device or "cpu")
    if chosen() == "reference":
        return "reference"
    if _for_triton(device) and unavailable(device) is None:
        return "triton"
    if device.type == "cpu":
        return "rows-compiled" if library() is not None else "rows-torch"
    return "sdpa"
