"""What the benches share: jobs in processes of their own, paired ratios, and going on after an interruption."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from headscope.errors import HeadscopeError
from headscope.files import write_text

SOURCE = "smollm2-135m"
THREADS = 2

Job = dict[str, Any]
"""What to measure, as JSON: a process of its own reads it; its measurements come back under more keys."""


@dataclass(frozen=True)
class Pair:
    """A variant with plain SDPA beside it, as a job's process measures them.

    Parameters
    ----------
    call, plain
        Run the variant, or the unchanged model; both on the same prompt.
    check
        Numbers that tell from a result of ``call`` whether variants computed the same.
    steps
        From results of ``call`` and ``plain``: seconds of decoding steps of both, under ``step_seconds`` and
        ``step_sdpa``.
    """

    call: Callable[[], Any]
    plain: Callable[[], Any]
    check: Callable[[Any], dict[str, float]]
    steps: Callable[[Any, Any], dict[str, list[float]]] | None = None


def memory_limit() -> int:
    """Return what a variant may take that holds whole patterns, in bytes: more would make the machine swap."""
    return int(psutil.virtual_memory().available * 0.9)


def run_cell(job: Job) -> Job:
    """Run one job in a process of its own and return its measurements with the job."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(
        [sys.executable, "-m", "headscope.bench.cell", json.dumps(job)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode == 0:
        return {**job, **json.loads(done.stdout.strip().splitlines()[-1])}
    if "not enough memory" in done.stderr or "MemoryError" in done.stderr or done.returncode == -9:
        return {**job, "fits": False, "limit": job["memory_limit"]}
    last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    return {**job, "fits": None, "error": last[0]}


def run_all(
    jobs: Sequence[Job],
    label: Callable[[Job], str],
    path: Path | None,
    hopeless: Callable[[Job, Job], bool] = lambda failed, job: False,
) -> list[Job]:
    """Run jobs one after the other and return their measurements.

    Parameters
    ----------
    label
        Name of a job on the screen.
    path
        File for all measurements. It is written after each of them, and what it holds is not measured again.
    hopeless
        Whether a job cannot fit the memory because a finished one did not.
    """
    from headscope.models.carried import fetch

    fetch(SOURCE)
    progress = Console(stderr=True)
    results: list[Job] = []
    done = _stored(path)
    with progress.status("") as status:
        for job in jobs:
            status.update(f"{len(results) + 1} of {len(jobs)}: {label(job)}")
            known = next((r for r in done if r["fits"] is not None and _same_job(r, job)), None)
            lost = any(r.get("fits") is False and hopeless(r, job) for r in results)
            skipped = {**job, "fits": False, "limit": job["memory_limit"]} if lost else None
            results.append(known or skipped or run_cell(job))
            if path is not None:
                write_text(path, json.dumps(report(results), indent=1))
            if results[-1].get("error"):
                progress.print(f"{label(job)}: {results[-1]['error']}", style="red")
    return results


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    """Return the median of time / time of plain SDPA, pair by pair."""
    pairs: list[float] = [a / b for a, b in zip(seconds, base, strict=True)]
    return statistics.median(pairs)


def not_measured(result: Job) -> str:
    """Say why a job has no measurements."""
    if result.get("fits") is False and result.get("limit"):
        return f"does not fit in {result['limit'] / 1e9:.1f} GB"
    return "failed"


def show(table: Table) -> None:
    """Print a table: as wide as the terminal, and in files and pipes as wide as it wants to be."""
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def report(results: Sequence[Job]) -> dict[str, Any]:
    """Return what is printed and written for machines."""
    return {"machine": _machine(), "source": SOURCE, "threads": THREADS, "results": list(results)}


def check_ours(results: Sequence[Job]) -> None:
    """Raise HeadscopeError if a measurement of headscope itself, or of plain SDPA, failed."""
    if any(r.get("error") for r in results if not r["memory_limit"]):
        raise HeadscopeError("A measurement of headscope itself failed; see above.")


def _stored(path: Path | None) -> list[Job]:
    """Return the measurements of an earlier run of this machine that was interrupted."""
    if path is None or not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return list(found["results"]) if found["machine"] == _machine() else []
    except (ValueError, KeyError, TypeError) as error:
        raise HeadscopeError(f"{path} does not hold measurements: {error}. Delete it or name another file.") from error


def _same_job(a: Job, b: Job) -> bool:
    return all(key in a and a[key] == b[key] for key in b if key != "memory_limit")


def _machine() -> dict[str, Any]:
    import platform

    import torch

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "memory": psutil.virtual_memory().total,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
