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

import torch

logger = logging.getLogger(__name__)

_FLAGS = ("-O3", "-std=c99", "-fPIC", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-funroll-loops")
_POINTER = ctypes.c_void_p


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
        return _bind(_build(compiler, source))
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
    return found
