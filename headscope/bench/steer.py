"""``headscope bench steer``: what edits of attention cost, beside plain SDPA and beside the eager way."""

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
from headscope.bench.steer_variants import METHODS

STEPS = 12
"""Decoding steps timed."""

_LONG, _LAYERS = 4096, 2
"""Above so many tokens the eager way runs on the first layers alone: the whole model would take it minutes a call."""


def cells(lengths: Sequence[int], peers: bool) -> list[Job]:
    """Return the jobs to run."""
    jobs = []
    for length in lengths:
        # Where a call takes many seconds (0 runs), the first one is the measurement: a warm-up would be lost in it.
        runs = 4 if length <= 1024 else 2 if length <= _LONG else 0
        jobs.append(_job(None, length, min(runs, 1)))
        jobs += [_job(method, length, runs) for method in METHODS]
    if peers:
        jobs += [
            _job(method, length, 3 if length <= 1024 else 0, eager=True) for length in lengths for method in METHODS
        ]
    return jobs


def _job(method: str | None, length: int, runs: int, *, eager: bool = False) -> Job:
    return {
        "bench": "steer",
        "method": method,
        "eager": eager,
        "length": length,
        "layers": _LAYERS if eager and length > _LONG else None,
        "runs": runs,
        "steps": STEPS,
        "source": SOURCE,
        "threads": THREADS,
        "compare": method is not None,
        "memory_limit": memory_limit() if eager else None,
    }


def main(lengths: Sequence[int], peers: bool = True, json_path: Path | None = None, machine: bool = False) -> None:
    """Measure, print a table for each length, and write JSON.

    Parameters
    ----------
    lengths
        Prompt lengths in tokens.
    peers
        Whether to measure the eager way too.
    json_path
        File for all measurements. It is written after each of them, and what it holds is not measured again.
    machine
        Print JSON in place of the tables.
    """
    results = run_all(cells(lengths, peers), _label, json_path)
    if machine:
        sys.stdout.write(json.dumps(report(results)) + "\n")
    else:
        for length in lengths:
            show(table([r for r in results if r["length"] == length], length))
    check_ours(results)


def _label(job: Job) -> str:
    name = "SDPA" if job["method"] is None else job["method"]
    return f"{name}{', eager' if job['eager'] else ''} at {job['length']} tokens"


def table(results: Sequence[Job], length: int) -> Table:
    """Return the printed table of one length: one row for each method."""
    title = f"{length} tokens, {SOURCE}, float32, {THREADS} threads; a quarter of the heads edited"
    shallow = next((r["layers"] for r in results if r["eager"] and r["layers"]), None)
    if shallow is not None:
        title += f"; eager: ratios over the first {shallow} layers"
    shown = Table(title=title, title_justify="left")
    columns = ["what", "prefill", "× SDPA", "step", "× SDPA", "peak memory"]
    eager = any(r["eager"] for r in results)
    if eager:
        columns += ["eager × SDPA", "headscope is faster", "eager step × SDPA", "eager memory", "logits differ by"]
    for name in columns:
        shown.add_column(name, justify="left" if name == "what" else "right")
    for ours in (r for r in results if not r["eager"]):
        row = _ours(ours)
        if eager:
            row += _eager(ours, next((r for r in results if r["eager"] and r["method"] == ours["method"]), None))
        shown.add_row(*row)
    return shown


def _ours(result: Job) -> list[str]:
    name = result["method"] or "SDPA"
    if not result.get("fits"):
        return [name, not_measured(result), "", "", "", ""]
    row = [name, f"{statistics.median(result['seconds']):.2f} s"]
    row += [f"{ratio(result['seconds'], result['sdpa']):.2f}"] if result["sdpa"] else ["1"]
    if result.get("step_seconds"):
        step = statistics.median(result["step_seconds"])
        row += [f"{step * 1000:.0f} ms", f"{ratio(result['step_seconds'], result['step_sdpa']):.2f}"]
    else:
        row += ["", ""]
    return [*row, f"{result['peak_bytes'] / 1e9:.2f} GB"]


def _eager(ours: Job, result: Job | None) -> list[str]:
    if result is None:
        return [""] * 5
    if not result.get("fits"):
        return [not_measured(result), "", "", "", ""]
    factor = ratio(result["seconds"], result["sdpa"])
    faster = f"{factor / ratio(ours['seconds'], ours['sdpa']):.1f}×" if ours.get("fits") else ""
    step = f"{ratio(result['step_seconds'], result['step_sdpa']):.2f}"
    worst = max(result["check"].values())
    return [f"{factor:.2f}", faster, step, f"{result['peak_bytes'] / 1e9:.2f} GB", f"{worst:.0e}"]
