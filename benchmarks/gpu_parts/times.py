"""How it is timed: time and memory of a call, and what the machine reaches at best."""

from __future__ import annotations

import contextlib
import platform
import statistics
import subprocess
import time
from functools import partial

import torch

from .cases import DEVICE, Job
from .variants import VARIANTS, Call, setting

TARGETS = {  # dense bf16 TFLOP/s and TB/s of data sheets; the first name that fits
    "H200": (989.4, 4.8), "H100 PCIe": (756.0, 2.0), "H100 NVL": (835.0, 3.9), "H100": (989.4, 3.35),
    "A100-SXM4-40GB": (312.0, 1.555), "A100-PCIE-40GB": (312.0, 1.555), "A100": (312.0, 2.039),
    "B200": (2250.0, 8.0), "L40S": (362.0, 0.864), "MI300X": (1307.0, 5.3),
}  # fmt: skip


def warm(job: Job) -> Job:
    """Run a variant once, so that what it compiles lies in the caches."""
    VARIANTS[job["variant"]](setting(job))()
    torch.cuda.synchronize()
    return {}


def once(call: Call) -> float:
    """Milliseconds of one call between two events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def clock(call: Call) -> float:
    """Median milliseconds: ``do_bench`` for short calls, three calls where its eight would take long."""
    from triton.testing import do_bench

    if once(call) > 50:
        return statistics.median(once(call) for _ in range(3))
    return float(do_bench(call, warmup=40, rep=80, return_mode="median"))


def timed(job: Job) -> Job:
    """Measure time and memory of a variant."""
    call = VARIANTS[job["variant"]](setting(job))
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = call()
    torch.cuda.synchronize()
    memory = torch.cuda.max_memory_allocated() - before
    del found
    ms = clock(call)
    found = {"ms": ms, "bytes": memory}
    if ms < 5:  # time until the call returns: where it is not far below ms, Python is what was measured
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            call()
        found["host_ms"] = (time.perf_counter() - start) * 100
    if isinstance(call, partial) and call.args[-1] is False:
        found["note"] = "keys repeated beforehand"
    return found


def ceilings(job: Job) -> Job:
    """What this GPU reaches: a large bfloat16 product, and a copy of a gigabyte."""
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    from triton.testing import do_bench

    product = do_bench(lambda: a @ b, warmup=100, rep=300, return_mode="median")
    block = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    copy = do_bench(lambda: block.clone(), warmup=50, rep=100, return_mode="median")
    return {"tflops": 2 * 8192**3 / product / 1e9, "terabytes": 2 * block.numel() / copy / 1e9}


def about(job: Job) -> Job:
    """The machine and its versions."""
    import triton

    found: Job = {"device": DEVICE.type, "python": platform.python_version(), "torch": torch.__version__}
    found["triton"] = triton.__version__
    if DEVICE.type == "cuda":
        found["device"] = torch.cuda.get_device_name()
        found["memory"] = torch.cuda.get_device_properties(0).total_memory
        query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
        with contextlib.suppress(OSError):
            found["driver, power, clock"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        found["datasheet"] = next((t for name, t in TARGETS.items() if name in found["device"]), None)
    return found
