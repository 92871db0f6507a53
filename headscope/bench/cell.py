"""Measure one job in a process of its own: ``python -m headscope.bench.cell '{"bench": …}'`` prints JSON."""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from headscope.bench.jobs import Job, Pair

VARIANTS = {"capture": "headscope.bench.variants", "steer": "headscope.bench.steer_variants"}


def peak() -> int:
    """Peak resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it started this process
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def measure(job: Job) -> dict[str, Any]:
    """Run a job: warm up, take the peak memory, then time variant and plain SDPA in turn."""
    torch.set_num_threads(job["threads"])
    if job["memory_limit"]:
        resource.setrlimit(resource.RLIMIT_AS, (job["memory_limit"], resource.RLIM_INFINITY))
    pair: Pair = importlib.import_module(VARIANTS[job["bench"]]).prepare(job)
    loaded = peak()
    try:
        first, found = _timed(pair.call)
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        return {"fits": False, "limit": job["memory_limit"]}
    result: dict[str, Any] = {"fits": True, "peak_bytes": peak(), "loaded_bytes": loaded, "seconds": [], "sdpa": []}
    base = None
    if job["compare"]:
        alone, base = _timed(pair.plain)
    for _ in range(job["runs"]):
        if job["compare"]:
            result["sdpa"].append(_timed(pair.plain)[0])
        result["seconds"].append(_timed(pair.call)[0])
    if not job["runs"]:
        result["seconds"], result["sdpa"] = [first], [alone] if job["compare"] else []
    result["check"] = pair.check(found)
    if pair.steps is not None:
        result |= pair.steps(found, base)
    return result


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(measure(json.loads(sys.argv[1]))) + "\n")
