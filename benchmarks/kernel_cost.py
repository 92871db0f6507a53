"""What the fused kernels cost on GPUs that are not there, from their machine code alone.

    python benchmarks/kernel_cost.py [--targets cuda:80,cuda:90,hip:gfx942] [--out FILE.json] [--markdown]

For every variant of the forward and for each target: the instructions of the inner loop by kind for each (query, key)
element, the bytes that must pass through memory, and the time that a roofline predicts for a causal prefill, beside the
same kernel with all captures compiled out, which is a plain flash forward. The roofline is drawn three ways:

- overlapped: the busiest pipe decides, all others hide behind it;
- staggered: matrix products (tensor cores, and shared memory that feeds them) wait while the rest works, and the rest
  while they work; pipes of the rest hide behind each other;
- serial: those do not either.

A good kernel lies between the first two. Cycles are counted, not measured: latencies, bank conflicts, clocks under
load, cache misses and idle units in the last wave are left out, in all variants alike.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from headscope.kernels.triton import assembly, catalogue
from headscope.kernels.triton.call import Call
from headscope.kernels.triton.offline import Built, compile_call

LENGTH, HEADS, KV_HEADS, HEAD_SIZE, DTYPE = 8192, 32, 8, 128, torch.bfloat16


@dataclass(frozen=True)
class Machine:
    """Rates of one GPU: each pipe in lanes for each clock and unit (SM or CU), tensor cores in dense multiply-adds.

    ``shared`` is in bytes for each clock and unit, ``memory`` in bytes for each second. ``pipe`` says which pipe takes
    a kind of instruction and how many turns it takes there; kinds without one cost no more than being issued.
    """

    name: str
    units: int
    clock: float
    lanes: int
    tensor: int
    pipes: dict[str, int]
    shared: int
    memory: float
    pipe: dict[str, tuple[str, int]]


# Units, clocks, tensor cores and memory: "NVIDIA A100 Tensor Core GPU Architecture" (312 TFLOPS = 108 · 1.41 GHz · 2 ·
# 1024; SXM, 40 GB), "NVIDIA H100 Tensor Core GPU Architecture" (989 TFLOPS = 132 · 1.83 GHz · 2 · 2048; SXM5, 80 GB),
# "AMD CDNA 3 Architecture" (1307 TFLOPS = 304 · 2.1 GHz · 2 · 1024; MI300X).
#
# NVIDIA's pipes: CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions", columns 8.0 and 9.0: float
# add, multiply and multiply-add 64 and 128; integer add, logic, shift, compare, minimum, maximum 64; integer
# multiply-add 64; ex2 and the like 16; warp shuffle 32; shared memory 32 banks of 4 bytes. What goes where:
# Nsight Compute, "Pipelines": ALU takes integers, logic, compare, minimum, moves, and the packed conversion of float to
# half; FMA takes integer multiply-adds too, on Hopper in one of its halves. Each of four schedulers issues one warp
# instruction for each clock.
#
# AMD's: "CDNA3 Instruction Set Architecture": four 16-lane SIMDs of a CU take all vector instructions, transcendental
# ones at a quarter of the rate; packed float instructions do two operations in one turn; LDS moves 128 bytes for each
# clock. Matrix, scalar and memory instructions of some waves run beside vector instructions of others.
_ALU = dict.fromkeys(("minmax", "convert", "select", "integer", "move"), ("alu", 1))
_NVIDIA = {"exp": ("special", 1), "special": ("special", 1), "fma": ("fma", 1), "shuffle": ("shuffle", 1)} | _ALU
_VECTOR = dict.fromkeys(("fma", "minmax", "convert", "select", "integer", "move"), ("vector", 1))
_AMD = _VECTOR | {"exp": ("vector", 4), "special": ("vector", 4), "shuffle": ("shuffle", 1)}
_PIPES = {"alu": 64, "special": 16, "shuffle": 32, "issue": 128}
MACHINES = {
    "cuda:80": Machine(
        "A100", 108, 1.41e9, 32, 1024, _PIPES | {"fma": 64}, 128, 1.555e12, _NVIDIA | {"multiply": ("fma", 1)}
    ),
    "cuda:90": Machine(
        "H100", 132, 1.83e9, 32, 2048, _PIPES | {"fma": 128}, 128, 3.35e12, _NVIDIA | {"multiply": ("fma", 2)}
    ),
    "hip:gfx942": Machine("MI300X", 304, 2.1e9, 64, 1024, {"vector": 64, "shuffle": 32}, 128, 5.3e12, _AMD),
}

ROWS = {
    "plain": ("plain",),
    "+ lse": ("lse",),
    "+ entropy": ("entropy",),
    "+ 8 region masses": ("masses",),
    "+ top-1": ("top",),
    "all four": ("all",),
    "received": ("received",),
    "edited, two groups": ("edited two groups",),
    "edited, many groups": ("edited many groups: masses", "edited many groups: weighted"),
}
"""Rows of the tables, and the launches that each takes."""
GOALS = {"all four": 1.15, "received": 1.0}
COLUMNS = {
    "tensor": ("tensor",),
    "exp": ("exp",),
    "fma": ("fma",),
    "min/max": ("minmax",),
    "select": ("select",),
    "integer": ("integer", "multiply"),
    "move": ("move",),
    "convert": ("convert",),
    "shuffle": ("shuffle",),
    "shared": ("shared load", "shared store"),
    "global": ("global load", "global store", "copy", "atomic"),
}
"""Columns of the table of instructions; the rest is summed as ``other``."""


@dataclass(frozen=True)
class Cost:
    """What one variant costs: instructions for each element, resources, and seconds on every pipe.

    ``blocks`` are queries × keys of a block, warps of a program and stages of its pipeline, of the last launch.
    """

    blocks: str
    per_element: dict[str, float]
    registers: int
    shared: int
    spilled: int
    bytes: int
    seconds: dict[str, float]

    @property
    def overlapped(self) -> float:
        return max(self.seconds.values())

    @property
    def staggered(self) -> float:
        return max(self._products + max(self._rest.values()), self.seconds["memory"])

    @property
    def serial(self) -> float:
        busy = sum(s for pipe, s in self._rest.items() if pipe != "issue")
        return max(self._products + busy, self.seconds["memory"])

    @property
    def _products(self) -> float:
        return max(self.seconds.get("tensor", 0.0), self.seconds.get("shared", 0.0))

    @property
    def _rest(self) -> dict[str, float]:
        return {pipe: s for pipe, s in self.seconds.items() if pipe not in ("tensor", "shared", "memory")}


def clocks(names: Counter[str], machine: Machine) -> Counter[str]:
    """Return the clocks for which one warp's instructions hold each pipe of a unit."""
    found: Counter[str] = Counter()
    for name, n in names.items():
        kind = assembly.kind(name)
        if kind == "tensor":
            found["tensor"] += n * assembly.multiply_adds(name) / machine.tensor
            found["shared"] += n * assembly.tensor_operands(name) / machine.shared
        elif kind.startswith("shared") or name.startswith("LDGSTS"):
            # Banks are four bytes wide: narrower accesses are no cheaper.
            found["shared"] += n * machine.lanes * max(4, assembly.width(name)) / machine.shared
        elif kind in machine.pipe:
            pipe, turns = machine.pipe[kind]
            found[pipe] += n * turns * machine.lanes / machine.pipes[pipe]
        if "issue" in machine.pipes:
            found["issue"] += n * machine.lanes / machine.pipes["issue"]
    return found


def tile(call: Call, built: Built) -> int:
    """Return how many (query, key) elements one turn of the inner loop takes; 0 where there is no such loop."""
    if built.flow.hottest() is None:
        return 0
    return int(call.arguments.get("BLOCK_M", 0) * call.arguments.get("BLOCK_N", 0))


def price(calls: Iterable[Call], target: str, elements: int) -> Cost:
    """Return what launches cost that together take ``elements`` (query, key) pairs each."""
    machine = MACHINES[target]
    per_element: Counter[str] = Counter()
    cycles: Counter[str] = Counter()
    read = registers = shared = spilled = 0
    blocks = ""
    for call in calls:
        built = compile_call(call, target)
        programs, size = math.prod(call.grid), tile(call, built)
        loop = built.instructions(loop=True) if size else Counter()
        turns = elements / programs / size if size else 0
        once = built.instructions() - loop
        for names, times in ((loop, turns), (once, 1)):
            for pipe, n in clocks(names, machine).items():
                cycles[pipe] += n * built.warps * programs * times / machine.units
        for kind, n in built.mix().items() if size else ():
            per_element[kind] += n * built.warps * (1 if kind == "tensor" else machine.lanes) / size
        tensors = {id(x): x for x in call.arguments.values() if isinstance(x, torch.Tensor)}
        read += sum(x.untyped_storage().nbytes() for x in tensors.values())
        registers, shared = max(registers, built.registers), max(shared, built.shared)
        spilled += built.spilled
        blocks = f"{call.arguments['BLOCK_M']}×{call.arguments['BLOCK_N']}, {call.warps}, {call.stages}"
    seconds = {pipe: n / machine.clock for pipe, n in cycles.items()} | {"memory": read / machine.memory}
    return Cost(blocks, dict(per_element), registers, shared, spilled, read, seconds)


def columns(cost: Cost) -> list[float]:
    shown = [sum(cost.per_element.get(kind, 0.0) for kind in kinds) for kinds in COLUMNS.values()]
    instructions = sum(n for kind, n in cost.per_element.items() if kind != "tensor")
    return [*shown, instructions - sum(shown[1:]), instructions]


def table(head: list[str], rows: list[list[str]], markdown: bool) -> str:
    if markdown:
        lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    return "\n".join(
        "  ".join(x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True)))
        for line in [head, *rows]
    )


def report(target: str, costs: dict[str, Cost], markdown: bool) -> str:
    machine, plain = MACHINES[target], costs["plain"]
    head = [f"{machine.name}: per element", "blocks", *COLUMNS, "other", "sum", "registers", "KiB"]
    rows = [
        [name, c.blocks, f"{columns(c)[0]:.0f}", *(f"{x:.2f}" for x in columns(c)[1:]), f"{c.registers}",
         f"{c.shared / 1024:.0f}"]
        for name, c in costs.items()
    ]  # fmt: skip
    parts = [table(head, rows, markdown), ""]
    ways = ("overlapped", "staggered", "serial")
    head = [f"{machine.name}: roofline", "MB", "busiest", *(x for way in ways for x in (f"{way}, ms", "×"))]
    rows = []
    for name, c in costs.items():
        cells = []
        for way in ways:
            cells += [f"{getattr(c, way) * 1e3:.3f}", f"{getattr(c, way) / getattr(plain, way):.3f}"]
        rows.append([name, f"{c.bytes / 1e6:.0f}", max(c.seconds, key=c.seconds.__getitem__), *cells])
    parts += [table(head, rows, markdown), ""]
    for name, goal in GOALS.items():
        if name in costs:
            ratios = [getattr(costs[name], way) / getattr(plain, way) for way in ways]
            verdict = "met" if max(ratios) <= goal else "met in part" if min(ratios) <= goal else "missed"
            parts.append(
                f"{machine.name}: {name} ≤ {goal:g} × plain: {verdict} ({min(ratios):.3f} to {max(ratios):.3f})"
            )
    return "\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=",".join(MACHINES), help="comma-separated, of " + ", ".join(MACHINES))
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    parser.add_argument("--markdown", action="store_true", help="tables for documents")
    asked = parser.parse_args(arguments)
    targets = asked.targets.split(",")
    if unknown := [target for target in targets if target not in MACHINES]:
        parser.error(f"unknown targets: {', '.join(unknown)}")
    elements = HEADS * LENGTH * (LENGTH + 1) // 2
    print(f"T = {LENGTH}, D = {HEAD_SIZE}, {HEADS} heads, {KV_HEADS} key heads, {DTYPE}, causal\n")
    found: dict[str, dict[str, Cost]] = {}
    for target in targets:
        planned = catalogue.calls(HEAD_SIZE, DTYPE, length=LENGTH, heads=HEADS, kv_heads=KV_HEADS, target=target)
        found[target] = {row: price([planned[name] for name in names], target, elements) for row, names in ROWS.items()}
        print(report(target, found[target], asked.markdown))
    if asked.out:
        written = {
            target: {
                name: asdict(c) | {"overlapped": c.overlapped, "staggered": c.staggered, "serial": c.serial}
                for name, c in costs.items()
            }
            for target, costs in found.items()
        }
        asked.out.write_text(json.dumps(written, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
