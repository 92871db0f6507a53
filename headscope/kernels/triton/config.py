"""Block sizes of the kernels: a table by shape class, or, on request, the fastest of those that fit, once measured.

The table makes runs reproducible to the bit. ``HEADSCOPE_AUTOTUNE=1`` measures candidates on the machine at the first
call of each shape class and remembers the best under ``HEADSCOPE_CACHE``.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from headscope.kernels.triton.arguments import HALVES, power


@dataclass(frozen=True)
class Card:
    """A kind of GPU: compute capability as one number (``80``; 0 for AMD), and shared memory of a program in bytes."""

    capability: int
    limit: int


CARDS = {
    "cuda:80": Card(80, 163 << 10),
    "cuda:90": Card(90, 227 << 10),
    "cuda:100": Card(100, 227 << 10),
    "hip:gfx942": Card(0, 64 << 10),
}
"""GPUs that kernels are compiled for without one."""

_ASSUMED: ContextVar[str] = ContextVar("headscope_target", default="cuda:90")


@contextmanager
def assuming(target: str) -> Iterator[None]:
    """Plan for a GPU that is not there, one of ``CARDS``."""
    token = _ASSUMED.set(target)
    try:
        yield
    finally:
        _ASSUMED.reset(token)


@functools.cache
def card(device: torch.device) -> Card:
    """Return what kind of GPU a device is."""
    properties: Any = torch.cuda.get_device_properties(device)
    limit = int(getattr(properties, "shared_memory_per_block_optin", 64 << 10))
    capability = 0 if torch.version.hip is not None else 10 * properties.major + properties.minor
    return Card(capability, limit)


@dataclass(frozen=True)
class Config:
    """Queries and keys of a block, warps of a program, depth of its pipeline."""

    m: int
    n: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Shape:
    """What decides which blocks are fast.

    Parameters
    ----------
    dtype, width, rows
        Precision, width of the heads, number of queries.
    entropy, top, channels
        What is captured.
    pair, given, tile
        Two accumulators; a known normaliser; a part of the pattern is read, nothing is summed.
    """

    dtype: torch.dtype
    width: int
    rows: int
    entropy: bool = False
    top: bool = False
    channels: int = 0
    pair: bool = False
    given: bool = False
    tile: bool = False

    @property
    def name(self) -> str:
        """The shape class: sizes rounded up to powers of two."""
        sizes = [power(x) for x in (self.width, min(self.rows, 4096))]
        flags = (self.entropy, self.top, self.channels, self.pair, self.given, self.tile)
        return " ".join(str(x) for x in (str(self.dtype).removeprefix("torch."), *sizes, *(int(x) for x in flags)))


def choose(shape: Shape, device: torch.device, measure: Callable[[Config], Any] | None = None) -> Config:
    """Return the blocks for a shape class; ``measure`` runs the kernel with some, for tuning."""
    if device.type != "cuda":
        return usual(shape, CARDS[_ASSUMED.get()])
    here = card(device)
    if measure is None or os.environ.get("HEADSCOPE_AUTOTUNE", "0") != "1":
        return usual(shape, here)
    known = _known(device)
    if shape.name not in known:
        known[shape.name] = _fastest(shape, here, measure)
        _keep(device, known)
    return known[shape.name]


def usual(shape: Shape, here: Card) -> Config:
    """Return the blocks of the table: measured on H200, elsewhere the largest that spill no register."""
    wide = power(shape.width)
    if shape.rows <= 16:
        return Config(16, 64 if wide <= 128 else 32, 2, 2)
    if shape.dtype not in HALVES:
        return Config(64, 32, 4, 1) if wide <= 64 else Config(32, 32 if wide <= 128 else 16, 4, 1)
    if shape.tile:
        return Config(64, 64 if wide <= 128 else 32, 8 if here.capability else 4, 2 if here.capability else 1)
    if here.capability == 0:
        return Config(128, 64, 4, 1) if wide <= 128 else Config(64, 32, 4, 1)
    if wide > 128:
        return Config(64, 32, 8, 2)
    if shape.pair:
        return Config(64, 64, 8 if here.capability != 90 or wide != shape.width else 4, 2)
    if here.capability == 90 and not shape.given:
        best = _forward(shape, wide)
        if shared(shape, best) <= here.limit:
            return best
    if here.capability >= 100 and (wide > 64 or shape.top):
        return Config(64, 64, 8 if wide > 64 else 4, 2)
    return Config(64, 64, 4, 2 if wide > 64 else 3)


def _forward(shape: Shape, wide: int) -> Config:
    bare = not (shape.entropy or shape.top or shape.channels)
    if wide <= 64:
        return Config(128, 64, 8, 3) if bare else Config(64, 128, 4, 2)
    if shape.channels and wide == shape.width and not (shape.entropy or shape.top):
        return Config(128, 128, 8, 2)
    return Config(64, 64, 4, 2)


def candidates(shape: Shape, here: Card) -> list[Config]:
    """Return blocks worth measuring that fit a GPU's shared memory, those of the table first."""
    if shape.rows <= 16:
        grid = [Config(16, n, warps, stages) for n in (32, 64, 128) for warps in (2, 4) for stages in (2, 3)]
    else:
        rows = (64, 128) if shape.dtype in HALVES else (32, 64)
        grid = [
            Config(m, n, warps, stages)
            for m in rows for n in (32, 64, 128) for warps in (4, 8) for stages in (2, 3, 4)
        ]  # fmt: skip
    first = usual(shape, here)
    return [first, *(c for c in grid if c != first and shared(shape, c) <= here.limit)]


def shared(shape: Shape, config: Config) -> int:
    """Return about how many bytes of shared memory a program takes: its queries, and keys and values in flight."""
    size = 2 if shape.dtype in HALVES else 4
    wide = power(shape.width)
    return size * (config.m * wide + config.stages * config.n * (2 * wide + shape.channels))


def _fastest(shape: Shape, here: Card, measure: Callable[[Config], Any]) -> Config:
    from triton.errors import TritonError
    from triton.testing import do_bench

    found: dict[Config, float] = {}
    for config in candidates(shape, here):
        try:
            found[config] = do_bench(functools.partial(measure, config), warmup=5, rep=20, return_mode="median")
        except TritonError:  # too large for this device after all
            continue
    return min(found, key=lambda config: found[config]) if found else usual(shape, here)


@functools.cache
def processors(device: torch.device) -> int:
    """Return how many multiprocessors a device has; the interpreter has a few, so that tests split keys too."""
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _known(device: torch.device) -> dict[str, Config]:
    try:
        stored = json.loads(_path(device).read_text())
        return {name: Config(*sizes) for name, sizes in stored.items()}
    except (OSError, ValueError, TypeError):
        return {}


def _keep(device: torch.device, known: dict[str, Config]) -> None:
    path = _path(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps({name: astuple(config) for name, config in sorted(known.items())}, indent=1))
    temporary.replace(path)


def _path(device: torch.device) -> Path:
    import platformdirs
    import triton

    folder = Path(os.environ.get("HEADSCOPE_CACHE") or platformdirs.user_cache_dir("headscope")) / "kernels"
    card = re.sub(r"\W+", "-", torch.cuda.get_device_name(device))
    return folder / f"triton-{triton.__version__}-{card}.json"
