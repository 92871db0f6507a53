"""Time the kernels with every block size worth trying, on a machine with a GPU: what the table in config.py comes from.

python benchmarks/tune.py [--head-sizes 64,128] [--length 8192] [--dtype bfloat16] [--jobs 12] [--out FILE.json]

All kernels are compiled first, by many processes; then one process times them from the cache.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import os

import torch

from headscope.kernels.inputs import AttentionInputs
from headscope.kernels.triton.arguments import per_key
from headscope.kernels.triton.config import Config
from headscope.kernels.triton.plan import Weighing, run
from headscope.kernels.triton.plan_forward import plan_forward
from headscope.kernels.triton.plan_reading import plan_received

HEADS, KV_HEADS = 32, 8
GRID = [
    Config(*sizes)
    for sizes in (
        (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4), (128, 128, 8, 2), (128, 128, 8, 3), (64, 64, 4, 2),
        (64, 64, 4, 3), (64, 64, 4, 4), (64, 128, 4, 2), (64, 128, 4, 3), (128, 32, 8, 3), (128, 32, 8, 4),
        (128, 64, 4, 3), (64, 32, 4, 3), (64, 32, 4, 4),
    )
]  # fmt: skip


def plans(d: int, length: int, dtype: torch.dtype) -> dict[str, Callable[[Config], Any]]:
    """Return how to plan each variant with given blocks."""

    def new(heads: int) -> torch.Tensor:
        return torch.randn(1, length, heads, d, device="cuda", dtype=dtype).transpose(1, 2)

    inp = AttentionInputs(new(HEADS), new(KV_HEADS), new(KV_HEADS), scale=d**-0.5, causal=True)
    spans = torch.arange(length, device="cuda")[:, None] * 8 // length == torch.arange(8, device="cuda")
    x, scattered = spans[None].contiguous(), torch.rand(1, length, 8, device="cuda") < 0.2
    groups = per_key(torch.randint(0, 2, (1, 1, length), device="cuda"))
    lse = run(plan_forward(inp, lse=True)).lse
    weighing = Weighing(groups, torch.randn(1, HEADS, length, 4, device="cuda"))
    return {
        "plain": lambda c: plan_forward(inp, out=True, config=c),
        "entropy": lambda c: plan_forward(inp, out=True, lse=True, entropy=True, config=c),
        "masses": lambda c: plan_forward(inp, out=True, lse=True, x=x, config=c),
        "masses of scattered keys": lambda c: plan_forward(inp, out=True, lse=True, x=scattered, config=c),
        "top": lambda c: plan_forward(inp, out=True, lse=True, top=True, config=c),
        "all": lambda c: plan_forward(inp, out=True, lse=True, entropy=True, top=True, x=x, config=c),
        "pair": lambda c: plan_forward(inp, pair=groups, config=c),
        "masses alone": lambda c: plan_forward(inp, lse=True, x=x, config=c),
        "weighted": lambda c: plan_forward(inp, out=True, given=lse, weighing=weighing, config=c),
        "received": lambda c: plan_received(inp, lse, config=c),
    }


def compile_one(job: tuple[str, int, int, str, Config]) -> str | None:
    """Compile one variant into the cache; return why it cannot be."""
    name, d, length, dtype, config = job
    torch.cuda.set_per_process_memory_fraction(0.05)
    try:
        run(plans(d, min(length, 1024), getattr(torch, dtype))[name](config))
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:120]}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--head-sizes", default="128,64")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp())
    sizes = [int(d) for d in options.head_sizes.split(",")]
    names = list(plans(16, 64, torch.float16))
    jobs = [(name, d, options.length, options.dtype, config) for d in sizes for name in names for config in GRID]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        failures = dict(zip(jobs, pool.map(compile_one, jobs), strict=True))
    from triton.testing import do_bench

    found = []
    for d in sizes:
        planned = plans(d, options.length, getattr(torch, options.dtype))
        for name in names:
            cells = []
            for config in GRID:
                why = failures[name, d, options.length, options.dtype, config]
                if why is not None:
                    found.append({"head_size": d, "variant": name, "config": astuple(config), "error": why})
                    continue
                (call, *_), _ = planned[name](config)
                ms = do_bench(call.run, warmup=10, rep=40, return_mode="median")
                cells.append((ms, astuple(config)))
                found.append({"head_size": d, "variant": name, "config": astuple(config), "ms": ms})
            best = ", ".join(f"{ms:.3f} ms {config}" for ms, config in sorted(cells)[:4])
            print(f"D={d} {name}: {best}", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps({"card": torch.cuda.get_device_name(), "results": found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
