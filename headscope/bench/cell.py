"""Measure one variant in a process of its own: ``python -m headscope.bench.cell '{"variant": …}'`` prints JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from headscope.bench.variants import prepare


def peak() -> int:
    """Peak resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it started this process
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job: warm up, take the peak memory, then time variant and plain SDPA in turn."""
    torch.set_num_threads(job["threads"])
    if job["memory_limit"]:
        resource.setrlimit(resource.RLIMIT_AS, (job["memory_limit"], resource.RLIM_INFINITY))
    call, plain = prepare(job["variant"], job["four"], job["length"], job["source"])
    loaded = peak()
    start = time.perf_counter()
    try:
        found = call()
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        return {"fits": False, "limit": job["memory_limit"]}
    result: dict[str, Any] = {"fits": True, "peak_bytes": peak(), "loaded_bytes": loaded, "seconds": [], "sdpa": []}
    first = time.perf_counter() - start
    result["check"] = {key: float(x[torch.isfinite(x)].double().mean()) for key, x in found.items()}
    del found
    if job["compare"]:
        plain()
    for _ in range(job["runs"]):
        if job["compare"]:
            result["sdpa"].append(_timed(plain))
        result["seconds"].append(_timed(call))
    if not job["runs"]:
        result["seconds"], result["sdpa"] = [first], [_timed(plain)] if job["compare"] else []
    return result


def _timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(measure(json.loads(sys.argv[1]))) + "\n")
