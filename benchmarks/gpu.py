"""Check the Triton kernels on a GPU and time them beside PyTorch's own attention: see benchmarks/README.md.

python benchmarks/gpu.py --out gpu.json --plot gpu.png

Jobs run in processes of their own, so that one failing kernel spoils no other result: many processes while there is
something to compile and to check, one alone for timing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import queue
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # gpu_parts
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # headscope

from gpu_parts.cases import DEVICE, Job, grid
from gpu_parts.processes import Worker, serve
from gpu_parts.report import Results, fractions, note, plot, summary
from gpu_parts.variants import HEADS, OURS, VARIANTS

from headscope.kernels.triton import interpreted


def run_checks(args: argparse.Namespace, results: Results, until: float) -> None:
    """Fill the compilers' caches, and check the grid, in several processes at once."""
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    if args.only != "checks":
        for size, name in itertools.product(args.head_sizes, OURS):
            for length in {min(args.lengths), max(args.lengths)}:
                jobs.put({"do": "warm", "variant": name, "length": length, "head_size": size})
        for size, length, name in itertools.product(args.head_sizes, args.lengths, ("flex", "decode flex")):
            jobs.put({"do": "warm", "variant": name, "length": length, "head_size": size})
    if args.only != "times":
        for case in grid(1 if args.quick else 3):
            jobs.put({"do": "check", "case": asdict(case)})

    def work() -> None:
        worker = Worker(HEADSCOPE_AUTOTUNE="0")  # nothing can be measured while others work
        while time.monotonic() < until:
            try:
                job = jobs.get_nowait()
            except queue.Empty:
                break
            left = until - time.monotonic()
            answer = late(worker.ask(job, min(180, left)), 180, left)
            if job["do"] == "check":
                results.add("checks", answer)
        worker.close()

    threads = [threading.Thread(target=work) for _ in range(args.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = Counter(jobs.get()["do"] for _ in range(jobs.qsize()))
    if left["check"]:
        results.data["skipped"].append(f"{left['check']} checks: no time left")


def late(answer: Job, enough: float, left: float) -> Job:
    """Say what it means that a job was ended: it hangs, or the time was over."""
    if not answer.pop("late", False):
        return answer
    return {**answer, **({"error": f"took more than {enough:.0f} s"} if enough < left else {"skipped": "no time left"})}


def predicted(name: str, length: int, size: int) -> float:
    """Seconds that a measurement may take: about six calls at a third of a common GPU's speed, and a compilation."""
    calls = 6 * length**2 * HEADS * (2 * size / 3e14 + (25 / 2e12 if "eager" in name else 0))
    return 1 + (0 if "decode" in name else calls) + (6 if "flex" in name else 0)


def run_times(args: argparse.Namespace, results: Results, until: float) -> None:
    """Time every variant, the lengths that say most first."""
    worker = Worker()
    results.data["ceilings"] = worker.ask({"do": "ceilings"}, until - time.monotonic())
    first = [8192, 2048, 32768, 131072, 1024, 4096, 16384, 65536]
    lengths = sorted(args.lengths, key=lambda n: first.index(n) if n in first else len(first))
    for size, length in itertools.product(args.head_sizes, lengths):
        for name in ("check", *VARIANTS):
            left = until - time.monotonic()
            job = {"do": "time", "variant": name, "length": length, "head_size": size}
            if name == "check":
                job = {"do": "long", "length": length, "head_size": size}
            if predicted(name, length, size) > left:
                results.add("skipped", f"{name} at {length}, head size {size}: no time left")
                continue
            enough = 60 + predicted(name, length, size)
            answer = late(worker.ask(job, min(enough, left)), enough, left)
            results.add("long" if name == "check" else "times", fractions(answer, results.data))
        note(f"timed: head size {size}, {length} tokens")
    worker.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Check and time the Triton kernels on this machine's GPU.")
    parser.add_argument("--quick", action="store_true", help="a third of the checks; three lengths; head size 128")
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")], default=None)
    parser.add_argument("--head-sizes", type=lambda text: [int(n) for n in text.split(",")], default=None)
    parser.add_argument("--only", choices=("checks", "times"))
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything")
    cores = max(1, min(12, (os.cpu_count() or 2) - 2))
    parser.add_argument("--jobs", type=int, default=cores, help="processes that check")
    parser.add_argument("--out", type=Path, help="file for the results, JSON")
    parser.add_argument("--plot", type=Path, help="file for a figure")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return 0
    start = time.monotonic()
    args.lengths = args.lengths or ([1024, 8192, 32768] if args.quick else [1 << n for n in range(10, 18)])
    args.head_sizes = args.head_sizes or ([128] if args.quick else [128, 64])
    results = Results(args.out)
    worker = Worker()
    results.data["about"] = worker.ask({"do": "about"}, 120)
    worker.close()
    if "error" in results.data["about"]:
        note(results.data["about"]["trace"] + results.data["about"]["error"])
        return 2
    if DEVICE.type != "cuda" and not interpreted():
        note("There is no GPU. TRITON_INTERPRET=1 runs the checks without one, slowly.")
        return 2
    if DEVICE.type != "cuda":
        args.only = "checks"
        results.data["skipped"].append("all times: there is no GPU")
    end = start + args.budget - 10  # what is printed and drawn takes its time, too
    share = {"checks": 1.0, "times": 0.3}.get(args.only, 0.45)
    run_checks(args, results, start + share * (end - start))
    results.write()
    note(f"checks: {len(results.data['checks'])} in {time.monotonic() - start:.0f} s")
    if args.only != "checks":
        run_times(args, results, end)
    results.write()
    if args.plot is not None and results.data["times"]:
        plot(results.data, args.plot)
    return 0 if summary(results.data) else 1


if __name__ == "__main__":
    sys.exit(main())
