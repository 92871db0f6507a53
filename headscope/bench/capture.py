"""``headscope bench capture``: what attention statistics cost, beside plain SDPA and beside other tools."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from headscope.bench.jobs import (
    SOURCE,
    THREADS,
    Job,
    check_ours,
    memory_limit,
    not_measured,
    ratio,
    report,
    run_all,
    show,
)
from headscope.bench.variants import PEERS


def cells(lengths: Sequence[int], peers: bool) -> list[Job]:
    """Return the jobs to run."""
    ours = [("SDPA", False), ("nothing asked", False), ("headscope", False), ("headscope", True)]
    # Where a call takes many seconds (0 runs), the first one is the measurement: a warm-up would be lost in it.
    runs = {length: 7 if length <= 1024 else 3 if length <= 4096 else 0 for length in lengths}
    jobs = [_job(*which, length, runs[length]) for length in lengths for which in ours]
    if peers:
        others = [(variant, four) for variant in PEERS for four in (False, True)]
        jobs += [_job(*which, length, 3 if length <= 1024 else 0) for length in lengths for which in others]
    return jobs


def _job(variant: str, four: bool, length: int, runs: int) -> Job:
    return {
        "bench": "capture",
        "variant": variant,
        "four": four,
        "length": length,
        "runs": runs,
        "source": SOURCE,
        "threads": THREADS,
        # A TransformerBridge rebuilds the model it wraps, so there is no plain SDPA beside it in its process.
        "compare": variant not in ("SDPA", "TransformerLens"),
        "memory_limit": memory_limit() if variant in PEERS else None,
    }


def ratios(result: Job, base: Job | None) -> float | None:
    """Return the median over runs of variant time / plain SDPA time, pair by pair.

    A variant that has no plain SDPA beside it in its process is held against ``base``, the cell of SDPA.
    """
    if not result.get("fits"):
        return None
    if not result["sdpa"]:
        return statistics.median(result["seconds"]) / statistics.median(base["seconds"]) if base else None
    return ratio(result["seconds"], result["sdpa"])


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
    results = run_all(cells(lengths, peers), _label, json_path, _same_call)
    if machine:
        sys.stdout.write(json.dumps(report(results)) + "\n")
    else:
        for length in lengths:
            show(table([r for r in results if r["length"] == length], length))
    check_ours(results)


def _label(job: Job) -> str:
    return f"{job['variant']}{_which(job)} at {job['length']} tokens"


def _same_call(a: Job, b: Job) -> bool:
    """Whether two jobs differ at most in what they reduce the patterns to: neither fits if one does not."""
    return bool(a["variant"] == b["variant"] and a["length"] == b["length"])


def _which(job: Job) -> str:
    return "" if job["variant"] in ("SDPA", "nothing asked") else " (four)" if job["four"] else " (pair)"


def table(results: list[Job], length: int) -> Table:
    """Return the printed table of one length."""
    shown = Table(title=f"{length} tokens, {SOURCE}, float32, {THREADS} threads", title_justify="left")
    for name in ("what", "seconds", "× SDPA", "peak memory", "× SDPA memory", "headscope is faster", "smaller"):
        shown.add_column(name, justify="left" if name == "what" else "right")
    base = next((r for r in results if r["variant"] == "SDPA" and r.get("fits")), None)
    ours = {r["four"]: r for r in results if r["variant"] == "headscope" and r.get("fits")}
    for r in results:
        label = f"{r['variant']}{_which(r)}"
        if not r.get("fits"):
            shown.add_row(label, not_measured(r), "", "", "", "", "")
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
