"""``headscope bench capture``: what attention statistics cost, beside plain SDPA and beside other tools."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from headscope.bench.variants import PEERS
from headscope.errors import HeadscopeError
from headscope.files import write_text

SOURCE = "smollm2-135m"
THREADS = 2


def cells(lengths: Sequence[int], peers: bool) -> list[dict[str, Any]]:
    """Return the jobs to run."""
    ours = [("SDPA", False), ("nothing asked", False), ("headscope", False), ("headscope", True)]
    # Where a call takes many seconds (0 runs), the first one is the measurement: a warm-up would be lost in it.
    runs = {length: 7 if length <= 1024 else 3 if length <= 4096 else 0 for length in lengths}
    jobs = [_job(*which, length, runs[length]) for length in lengths for which in ours]
    if peers:
        others = [(variant, four) for variant in PEERS for four in (False, True)]
        jobs += [_job(*which, length, 3 if length <= 1024 else 0) for length in lengths for which in others]
    return jobs


def _job(variant: str, four: bool, length: int, runs: int) -> dict[str, Any]:
    limit = int(psutil.virtual_memory().available * 0.9) if variant in PEERS else None
    return {
        "variant": variant,
        "four": four,
        "length": length,
        "runs": runs,
        "source": SOURCE,
        "threads": THREADS,
        # A TransformerBridge rebuilds the model it wraps, so there is no plain SDPA beside it in its process.
        "compare": variant not in ("SDPA", "TransformerLens"),
        "memory_limit": limit,
    }


def run_cell(job: dict[str, Any]) -> dict[str, Any]:
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


def ratios(result: dict[str, Any], base: dict[str, Any] | None) -> float | None:
    """Return the median over runs of variant time / plain SDPA time, pair by pair.

    A variant that has no plain SDPA beside it in its process is held against ``base``, the cell of SDPA.
    """
    if not result.get("fits"):
        return None
    if not result["sdpa"]:
        return statistics.median(result["seconds"]) / statistics.median(base["seconds"]) if base else None
    pairs: list[float] = [a / b for a, b in zip(result["seconds"], result["sdpa"], strict=True)]
    return statistics.median(pairs)


def main(lengths: Sequence[int], peers: bool = True, json_path: Path | None = None, machine: bool = False) -> None:
    """Measure, print the table, and write JSON.

    Parameters
    ----------
    lengths
        Prompt lengths in tokens.
    peers
        Whether to measure the tools that hold whole patterns.
    json_path
        File for all measurements. It is written after each of them, and what it holds is not measured again.
    machine
        Print JSON in place of the table.
    """
    console, progress = Console(), Console(stderr=True)
    from headscope.models.carried import fetch

    fetch(SOURCE)
    results: list[dict[str, Any]] = []
    done = _stored(json_path)
    with progress.status("") as status:
        for job in (jobs := cells(lengths, peers)):
            label = f"{job['variant']}{_which(job)} at {job['length']} tokens"
            status.update(f"{len(results) + 1} of {len(jobs)}: {label}")
            hopeless = any(r.get("fits") is False and _same_call(r, job) for r in results)
            known = next((r for r in done if r["fits"] is not None and _same_job(r, job)), None)
            skipped = {**job, "fits": False, "limit": job["memory_limit"]} if hopeless else None
            results.append(known or skipped or run_cell(job))
            if json_path is not None:
                write_text(json_path, json.dumps(_report(results), indent=1))
            if results[-1].get("error"):
                progress.print(f"{label}: {results[-1]['error']}", style="red")
    if machine:
        sys.stdout.write(json.dumps(_report(results)) + "\n")
    else:
        for length in lengths:
            console.print(table([r for r in results if r["length"] == length], length))
    if any(r.get("error") for r in results if r["variant"] not in PEERS):
        raise HeadscopeError("A measurement of headscope itself failed; see above.")


def _report(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {"machine": _machine(), "source": SOURCE, "threads": THREADS, "results": results}


def _stored(path: Path | None) -> list[dict[str, Any]]:
    """Return the measurements of an earlier run of this machine that was interrupted."""
    if path is None or not path.exists():
        return []
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return list(report["results"]) if report["machine"] == _machine() else []
    except (ValueError, KeyError, TypeError) as error:
        raise HeadscopeError(f"{path} does not hold measurements: {error}. Delete it or name another file.") from error


def _same_job(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a[key] == b[key] for key in b if key != "memory_limit")


def _same_call(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two jobs differ at most in what they reduce the patterns to: neither fits if one does not."""
    return bool(a["variant"] == b["variant"] and a["length"] == b["length"])


def _which(job: dict[str, Any]) -> str:
    return "" if job["variant"] in ("SDPA", "nothing asked") else " (four)" if job["four"] else " (pair)"


def table(results: list[dict[str, Any]], length: int) -> Table:
    """Return the printed table of one length."""
    shown = Table(title=f"{length} tokens, {SOURCE}, float32, {THREADS} threads", title_justify="left")
    for name in ("what", "seconds", "× SDPA", "peak memory", "× SDPA memory", "headscope is faster", "smaller"):
        shown.add_column(name, justify="left" if name == "what" else "right")
    base = next((r for r in results if r["variant"] == "SDPA" and r.get("fits")), None)
    ours = {r["four"]: r for r in results if r["variant"] == "headscope" and r.get("fits")}
    for r in results:
        label = f"{r['variant']}{_which(r)}"
        if not r.get("fits"):
            reason = (
                f"does not fit in {r['limit'] / 1e9:.1f} GB" if r.get("fits") is False and r.get("limit") else "failed"
            )
            shown.add_row(label, reason, "", "", "", "", "")
            continue
        seconds, factor = statistics.median(r["seconds"]), ratios(r, base)
        cells_ = [
            label,
            f"{seconds:.2f}",
            "1" if factor is None else f"{factor:.2f}",
            f"{r['peak_bytes'] / 1e9:.2f} GB",
        ]
        cells_.append("" if base is None else f"{r['peak_bytes'] / base['peak_bytes']:.2f}")
        mine = ours.get(r["four"])
        if r["variant"] in PEERS and mine is not None and factor is not None:
            own = ratios(mine, base)
            cells_ += [f"{factor / own:.1f}×" if own else "", f"{r['peak_bytes'] / mine['peak_bytes']:.1f}×"]
        else:
            cells_ += ["", ""]
        shown.add_row(*cells_)
    return shown


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
