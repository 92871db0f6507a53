"""Compile a planned launch for a GPU that is not there, and read what the compiler made of it.

Triton carries all that this needs: its compilers, NVIDIA's assembler and disassembler.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from headscope.errors import HeadscopeError
from headscope.kernels.triton import assembly
from headscope.kernels.triton.assembly import Flow, Instruction
from headscope.kernels.triton.call import Call
from headscope.kernels.triton.config import CARDS

SHARED_LIMIT = {target: card.limit for target, card in CARDS.items()}
"""Shared memory that one program may have, in bytes."""
TARGETS = tuple(SHARED_LIMIT)

_LOCK = threading.Lock()


@dataclass(frozen=True)
class Built:
    """What a kernel became.

    Parameters
    ----------
    target
        Which GPU it was compiled for.
    name
        Name of the kernel.
    warps
        Warps of a program.
    shared
        Shared memory of a program, in bytes.
    registers
        Registers of a thread; AMD accumulators included.
    spilled
        Bytes that each thread puts into local memory for want of registers.
    parked
        Scalar registers of AMD that are put into lanes of vector registers, for want of more.
    local
        Local memory (stack) of a thread, in bytes.
    ptx, sass
        Assembly and machine code for NVIDIA.
    amdgcn
        Assembly for AMD.
    """

    target: str
    name: str
    warps: int
    shared: int
    registers: int
    spilled: int
    parked: int
    local: int
    ptx: str | None = field(default=None, repr=False)
    sass: str | None = field(default=None, repr=False)
    amdgcn: str | None = field(default=None, repr=False)

    @cached_property
    def code(self) -> list[Instruction]:
        """The machine code."""
        return assembly.sass(self.sass) if self.sass is not None else assembly.amdgcn(self.amdgcn or "")

    @cached_property
    def flow(self) -> Flow:
        """The machine code as blocks and loops."""
        return Flow(self.code)

    def instructions(self, loop: bool = False, skip: bool = False) -> Counter[str]:
        """Return how many instructions of each name one warp has.

        Parameters
        ----------
        loop
            Of one turn of the inner loop with the most tensor work instead of the whole kernel; of two such loops, of
            the one that does less besides. A kernel without loops is one turn.
        skip
            Leave out the parts of the loop that a turn may jump over.
        """
        head = self.flow.hottest() if loop else None
        if head is None:
            return Counter(i.name for i in self.code)
        return self.flow.instructions(self.flow.shortest(head) if skip else self.flow.loops[head])

    def mix(self, loop: bool = True, skip: bool = False) -> Counter[str]:
        """Return the same by kind (``assembly.KINDS``). Tensor work is counted in multiply-adds, not instructions."""
        found: Counter[str] = Counter()
        for name, n in self.instructions(loop, skip).items():
            kind = assembly.kind(name)
            found[kind] += n * (assembly.multiply_adds(name) if kind == "tensor" else 1)
        return found

    def widest(self) -> int:
        """Return the bytes of the widest load from global memory of one thread, copies to shared memory included."""
        kinds = ("global load", "copy")
        return max((assembly.width(i.name) for i in self.code if assembly.kind(i.name) in kinds), default=0)


def compile_call(call: Call, target: str) -> Built:
    """Compile a launch, exactly as Triton would specialise it on ``target``, without launching anything.

    Parameters
    ----------
    call
        The launch, planned from tensors of any device.
    target
        ``cuda:80`` (A100), ``cuda:90`` (H100), ``cuda:100`` (B200), ``hip:gfx942`` (MI300X), or others like them.

    Raises
    ------
    HeadscopeError
        Triton is not installed, or interprets kernels; the target is not known to it; a tool is missing.
    """
    triton = _triton(call.kernel)
    with _pretending(triton, target):
        kernel = call.kernel.warmup(
            grid=call.grid, **call.arguments, num_warps=call.warps, num_stages=call.stages
        )  # fmt: skip
        kernel = kernel.result() if hasattr(kernel, "result") else kernel
    about = kernel.metadata
    common: dict[str, Any] = {"target": target, "name": about.name, "warps": about.num_warps, "shared": about.shared}
    if target.startswith("hip:"):
        return Built(**common, **_amd_resources(kernel.asm["amdgcn"]), amdgcn=kernel.asm["amdgcn"])
    sass, usage = _disassembled(triton, kernel.asm["cubin"])
    return Built(**common, **_nvidia_resources(sass, usage), ptx=kernel.asm["ptx"], sass=sass)


def _triton(kernel: Any) -> Any:
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        raise HeadscopeError("Compiling GPU kernels needs Triton: pip install triton (Linux).") from error
    if not isinstance(kernel, triton.runtime.JITFunction):
        raise HeadscopeError(
            f"{kernel!r} cannot be compiled: it was imported with TRITON_INTERPRET=1, so Triton interprets it. "
            "Start Python without TRITON_INTERPRET."
        )
    return triton


class _Absent:
    """Stands in for the driver of a GPU that is not there. Compiling asks it for no more than this."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> Any:
        # Kernels are cached by device: one device for each target.
        return self.target

    def get_current_stream(self, _: Any) -> int:
        return 0


@contextmanager
def _pretending(triton: Any, target: str) -> Iterator[None]:
    """Make Triton believe that the target is the current device."""
    backend, _, arch = target.partition(":")
    known = (backend == "cuda" and arch.isdigit()) or (backend == "hip" and arch.startswith("gfx"))
    if not known:
        raise HeadscopeError(f"There is no target {target!r}. Targets look like {', '.join(TARGETS)}.")
    lanes = 64 if arch.startswith("gfx9") else 32
    described = triton.backends.compiler.GPUTarget(backend, int(arch) if backend == "cuda" else arch, lanes)
    driver = triton.runtime.driver
    with _LOCK:
        before = dict(vars(driver))  # asking it what is active would look for a GPU
        driver.set_active(_Absent(described))
        try:
            yield
        finally:
            vars(driver).update(before)


def _disassembled(triton: Any, cubin: bytes) -> tuple[str, str]:
    """Machine code and resources of a kernel, as text."""
    try:
        tool = triton.knobs.nvidia.cuobjdump.path
    except RuntimeError as error:
        raise HeadscopeError("Reading machine code needs NVIDIA's cuobjdump, which this Triton lacks.") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        sass, usage = (
            subprocess.run([tool, option, path], check=True, capture_output=True, text=True).stdout
            for option in ("-sass", "-res-usage")
        )
    return sass, usage


def _nvidia_resources(sass: str, usage: str) -> dict[str, Any]:
    found = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    stores = (i.name for i in assembly.sass(sass) if assembly.kind(i.name) == "local store")
    return {
        "registers": found["REG"],
        "spilled": sum(map(assembly.width, stores)),
        "parked": 0,
        "local": found.get("STACK", 0) + found.get("LOCAL", 0),
    }


def _amd_resources(text: str) -> dict[str, Any]:
    found = {name: int(n) for name, n in re.findall(r"^\s+(?:- )?\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    return {
        "registers": found["vgpr_count"],
        "spilled": 4 * found["vgpr_spill_count"],
        "parked": found["sgpr_spill_count"],
        "local": found["private_segment_fixed_size"],
    }
