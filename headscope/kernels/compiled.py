"""Compile ``rows.c`` once per machine with the C compiler that is there; without one, plain PyTorch does the work."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headscope.kernels.edits import Reweight, RowEdit
from headscope.kernels.inputs import AttentionInputs

logger = logging.getLogger(__name__)

_FLAGS = ("-O3", "-std=c99", "-fPIC", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-funroll-loops")
_POINTER = ctypes.c_void_p

GROUPS = 16
"""How many groups of keys the kernels know, the rest counted."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled row kernels, or None where they cannot be had (``HEADSCOPE_COMPILE=0`` switches them off)."""
    if os.environ.get("HEADSCOPE_COMPILE", "1") == "0":
        return None
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        logger.info("no C compiler: attention statistics are computed by plain PyTorch")
        return None
    source = resources.files("headscope.kernels").joinpath("rows.c").read_text()
    try:
        kernel = _bind(_build(compiler, source))
        if _sound(kernel):
            return kernel
        logger.warning("%s compiles the row kernels wrongly: plain PyTorch is used instead", compiler)
        return None
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("row kernels could not be compiled (%s): plain PyTorch is used instead", error)
        return None


def _cache_folder() -> Path:
    import platformdirs

    return Path(os.environ.get("HEADSCOPE_CACHE") or platformdirs.user_cache_dir("headscope")) / "kernels"


def _build(compiler: str, source: str) -> Path:
    identity = "\0".join((source, compiler, *_FLAGS, torch.__version__, platform.machine(), _processor()))
    target = _cache_folder() / f"rows-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        code, built, made = Path(folder, "rows.c"), Path(folder, "rows.o"), Path(folder, "rows.so")
        code.write_text(source)
        subprocess.run([compiler, *_FLAGS, "-fopenmp", "-c", code, "-o", built], check=True, capture_output=True)
        # Linked without an OpenMP runtime: PyTorch has loaded its own, and a second pool of threads would fight it.
        subprocess.run([compiler, "-shared", built, "-o", made, "-lm"], check=True, capture_output=True)
        made.replace(target)
    return target


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in text.splitlines() if line.startswith(("model name", "flags", "Features"))}))


def _bind(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    i64 = ctypes.c_int64
    found.headscope_rows.argtypes = [_POINTER, i64, i64, i64, *[_POINTER] * 6, ctypes.c_int]
    found.headscope_rows.restype = None
    found.headscope_columns.argtypes = [_POINTER, i64, i64, i64, i64, _POINTER, i64, ctypes.c_int]
    found.headscope_columns.restype = None
    grouped: list[Any] = [_POINTER, i64, i64]
    found.headscope_reweigh.argtypes = [_POINTER, i64, i64, i64, *grouped, i64, *[_POINTER] * 3, ctypes.c_int]
    found.headscope_reweigh.restype = None
    found.headscope_hide.argtypes = [_POINTER, i64, i64, _POINTER, *grouped, _POINTER, ctypes.c_int]
    found.headscope_hide.restype = None
    found.headscope_step.argtypes = [
        *[_POINTER] * 4, *[i64] * 6, ctypes.c_float, _POINTER, i64, _POINTER, *[i64] * 3, *[_POINTER] * 3,
        ctypes.c_int,
    ]  # fmt: skip
    found.headscope_step.restype = None
    return found


def _sound(kernel: ctypes.CDLL) -> bool:
    """Whether sums over groups and weights are right: some compilers vectorise them wrongly."""
    tile = torch.arange(1, 136, dtype=torch.float32).view(3, 1, 45)
    groups = (torch.arange(135, dtype=torch.uint8) * 7 % 4).view(3, 45)
    weights = torch.tensor([1.0, 3.0, 0.0, 2.0])[groups.long()][:, None]
    expected = tile * weights / (tile * weights).sum(-1, keepdim=True)
    reweigh(kernel, tile, groups, (0, 1.0, 3.0, 0.0, 2.0), 4)
    return torch.allclose(tile, expected, rtol=1e-5, atol=0)


def reweigh(
    kernel: ctypes.CDLL,
    tile: Tensor,
    groups: Tensor,
    rule: tuple[float, ...],
    count: int,
    edited: Tensor | None = None,
    other: Tensor | None = None,
) -> None:
    """Change the attention of rows (H, rows, keys) in place, by what they put on each of ``count`` groups of keys.

    ``groups`` (H or 1, at least keys) holds the group of each key as a byte, ``rule`` is a rule's ``code``, and
    ``edited`` says which rows (H, rows) it is for. ``other`` (H · rows,) is what a learned sink takes of each row, and
    is brought up to date.
    """
    heads, rows, seen = tile.shape
    kernel.headscope_reweigh(
        tile.data_ptr(), heads * rows, seen, seen, *_grouped(groups, rows), count, (ctypes.c_float * len(rule))(*rule),
        None if edited is None else edited.data_ptr(), None if other is None else other.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip


def hide(kernel: ctypes.CDLL, tile: Tensor, limit: Tensor, keys: Tensor, edited: Tensor | None) -> None:
    """Set logits (H, rows, keys) of hidden keys (H or 1, at least keys) to −inf in place, in ``edited`` rows (H, rows).

    A row that would see nothing then is left alone; row i of each head sees ``limit[i]`` keys (H · rows,).
    """
    heads, rows, seen = tile.shape
    kernel.headscope_hide(
        tile.data_ptr(), heads * rows, seen, limit.data_ptr(), *_grouped(keys, rows),
        None if edited is None else edited.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip


def step(kernel: ctypes.CDLL, inp: AttentionInputs, heads: Tensor, edit: RowEdit) -> Tensor:
    """Return the output (B, n, 1, Dv) of some heads (n,) in a decoding step under one edit of all its rows.

    Keys and values are read where they lie.
    """
    groups = edit.groups if isinstance(edit, Reweight) else edit.keys
    mask = None if inp.mask is None else inp.mask.data_ptr()
    mask_batch = 0 if inp.mask is None or len(inp.mask) == 1 else inp.mask.stride(0)
    tile = inp.q.new_empty(inp.batch, len(heads), inp.tk)
    out = inp.q.new_empty(inp.batch, len(heads), 1, inp.v.shape[-1])
    rule = edit.code
    kernel.headscope_step(
        _lines(inp.q), _lines(inp.k), _lines(inp.v), heads.data_ptr(), len(heads), inp.group, inp.batch, inp.tk,
        inp.q.shape[-1], out.shape[-1], inp.scale, mask, mask_batch, groups.data_ptr(), groups.stride(0),
        groups.stride(1) if groups.shape[1] > 1 else 0, edit.count + 1 if isinstance(edit, Reweight) else 2,
        (ctypes.c_float * len(rule))(*rule), tile.data_ptr(), out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out


class _Lines(ctypes.Structure):
    _fields_ = (("start", _POINTER), ("batch", ctypes.c_int64), ("head", ctypes.c_int64), ("row", ctypes.c_int64))


def _lines(x: Tensor) -> Any:
    """Return where the lines of x (B, H, T, D) begin."""
    return ctypes.byref(_Lines(x.data_ptr(), *x.stride()[:3]))


def _grouped(groups: Tensor, rows: int) -> tuple[int, int, int]:
    """Return address, stride between heads, and rows of a head, as the kernels take groups of keys."""
    if groups.stride(-1) != 1:
        raise ValueError("groups of keys must lie side by side")
    return groups.data_ptr(), groups.stride(0) if len(groups) > 1 else 0, rows
