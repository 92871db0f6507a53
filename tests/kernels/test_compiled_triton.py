"""The Triton kernels as GPUs would run them, compiled without one: nothing spills, all fits, the right instructions.

Kernels are compiled in a process of their own, because Triton decides at import whether it compiles or interprets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from headscope.errors import HeadscopeError
from headscope.kernels.triton import assembly
from headscope.kernels.triton.call import Call
from headscope.kernels.triton.offline import SHARED_LIMIT, TARGETS, compile_call

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (it is for Linux alone)")

SHAPES = {128: "bfloat16", 64: "float16", 80: "bfloat16", 256: "float16"}
"""Head sizes, and the precision in which each is compiled."""
FEW = ("plain", "masses", "all", "received", "edited two groups", "edited many groups: weighted")
"""Variants that are compiled for every head size; others for the first."""
LESS = ("lse", "entropy", "top")
"""Variants that are not compiled at all: parts of ``all``."""
WITHOUT_TENSOR_CORES = ("lookup",)
VECTOR = 16
PARKED = 0.01
"""Which part of a loop may move scalar registers of AMD out of the way and back, into lanes of vector registers."""

# A loop of two ways, with a turn that waits, and a cold block behind the end.
SASS = """
        Function : kernel
        .headerflags    @"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                    /* 0x1 */
                                                                            /* 0x2 */
        /*0010*/                   IMAD.MOV.U32 R2, RZ, RZ, R1 ;             /* 0x1 */
        /*0020*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1], R2 ;  /* 0x1 */
        /*0030*/              @!P0 BRA 0x20 ;                                /* 0x1 */
        /*0040*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;  /* 0x1 */
        /*0050*/                   MUFU.EX2 R3, R4 ;                         /* 0x1 */
        /*0060*/              @P1  BRA 0xa0 ;                                /* 0x1 */
        /*0070*/                   FADD R3, R3, R4 ;                         /* 0x1 */
        /*0080*/              @P2  BRA 0x20 ;                                /* 0x1 */
        /*0090*/                   EXIT ;                                    /* 0x1 */
        /*00a0*/                   FMNMX R3, R3, R4, !PT ;                   /* 0x1 */
        /*00b0*/                   BRA 0x70 ;                                /* 0x1 */
        /*00c0*/                   BRA 0xc0;                                 /* 0x1 */
"""
AMD = """
kernel:                                 ; @kernel
; %bb.0:
\ts_load_dwordx4 s[0:3], s[4:5], 0x0
\ts_branch .LBB0_2
.LBB0_1:                                ;   in Loop: Header=BB0_2
\tv_add_u32_e32 v1, v2, v3
\ts_cbranch_scc1 .LBB0_3
.LBB0_2:                                ; =>This Inner Loop Header: Depth=1
\tv_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1], v[2:3], a[0:15]
\tglobal_load_dwordx4 v[4:7], v[8:9], off
\ts_cbranch_scc0 .LBB0_1
.LBB0_3:
\ts_endpgm
.Lfunc_end0:
\tv_exp_f32_e32 v1, v1
"""


def test_loops_are_found_in_sass() -> None:
    flow = assembly.Flow(assembly.sass(SASS))
    head = flow.hottest()
    assert head is not None
    loop = flow.instructions(flow.loops[head])
    assert loop == Counter(
        ["SYNCS.PHASECHK.TRANS64.TRYWAIT", "HGMMA.64x128x16.F32.BF16.SS", "MUFU.EX2", "FADD", "FMNMX", *["BRA"] * 4]
    )
    skipped = flow.instructions(flow.shortest(head))
    assert loop - skipped == Counter(["FMNMX", "BRA"])


def test_loops_are_found_in_amd_code() -> None:
    flow = assembly.Flow(assembly.amdgcn(AMD))
    head = flow.hottest()
    assert head is not None
    assert flow.instructions(flow.loops[head]) == Counter(
        ["v_add_u32_e32", "s_cbranch_scc1", "v_mfma_f32_32x32x8_bf16_1k", "global_load_dwordx4", "s_cbranch_scc0"]
    )
    assert "v_exp_f32_e32" not in flow.instructions(range(len(flow.blocks)))


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "HMMA.16816.F32.BF16": "tensor",
        "UTCHMMA": "tensor",
        "v_mfma_f32_16x16x16_f16": "tensor",
        "MUFU.EX2": "exp",
        "MUFU.RCP": "special",
        "v_exp_f32_e32": "exp",
        "FFMA.FTZ": "fma",
        "FFMA2": "fma",
        "v_pk_mul_f32": "fma",
        "IMAD.MOV.U32": "multiply",
        "FMNMX3": "minmax",
        "VIMNMX.S32": "minmax",
        "v_max3_f32": "minmax",
        "F2FP.BF16.F32.PACK_AB": "convert",
        "ISETP.GE.AND": "select",
        "UISETP.GE.AND": "uniform",
        "v_cndmask_b32_e32": "select",
        "LOP3.LUT": "integer",
        "v_add_u32_e32": "integer",
        "SHFL.BFLY": "shuffle",
        "ds_bpermute_b32": "shuffle",
        "LDGSTS.E.BYPASS.LTC128B.128": "copy",
        "LDG.E.128": "global load",
        "LDGDEPBAR": "barrier",
        "LDSM.16.M88.4": "shared load",
        "ds_write_b128": "shared store",
        "STL.64": "local store",
        "scratch_load_dword": "local load",
        "BAR.SYNC.DEFER_BLOCKING": "barrier",
        "s_waitcnt": "barrier",
        "ULDC.64": "constant",
        "R2UR": "move",
        "BRA": "control",
        "v_mul_lo_u32": "integer",
    }.items(),
)
def test_instructions_have_kinds(name: str, kind: str) -> None:
    assert assembly.kind(name) == kind


@pytest.mark.parametrize(
    ("name", "count"),
    {
        "HMMA.16816.F32.BF16": 16 * 8 * 16,
        "HMMA.1688.F32.TF32": 16 * 8 * 8,
        "HGMMA.64x128x16.F32.BF16": 64 * 128 * 16 // 4,
        "v_mfma_f32_32x32x8_bf16_1k": 32 * 32 * 8,
        "v_mfma_f32_4x4x4_16b_f16": 4 * 4 * 4 * 16,
        "FFMA": 0,
    }.items(),
)
def test_tensor_work_is_counted_in_multiply_adds(name: str, count: int) -> None:
    assert assembly.multiply_adds(name) == count


def test_hopper_reads_operands_from_shared_memory() -> None:
    assert assembly.tensor_operands("HGMMA.64x128x16.F32.BF16.SS") * 4 == (64 + 128) * 16 * 2
    assert assembly.tensor_operands("HGMMA.64x128x16.F32.BF16.RS") * 4 == 128 * 16 * 2
    assert assembly.tensor_operands("HMMA.16816.F32.BF16") == 0


@pytest.mark.parametrize(
    ("name", "width"),
    {
        "LDG.E.128": 16,
        "LDG.E": 4,
        "LDG.E.U16": 2,
        "LDGSTS.E.BYPASS.LTC128B.128": 16,
        "LDSM.16.M88.4": 16,
        "STL.64": 8,
        "global_load_dwordx4": 16,
        "buffer_load_ushort": 2,
        "ds_read2_b64": 16,
        "ds_read_u16_d16": 2,
    }.items(),
)
def test_width_of_accesses(name: str, width: int) -> None:
    assert assembly.width(name) == width


@needs_triton
def test_interpreted_kernels_and_unknown_targets_are_refused() -> None:
    import triton

    with pytest.raises(HeadscopeError, match="TRITON_INTERPRET"):
        compile_call(Call(object(), (1,), {}, 4, 2), "cuda:90")
    kernel = object.__new__(triton.runtime.JITFunction)
    with pytest.raises(HeadscopeError, match="no target 'cuda:xy'"):
        compile_call(Call(kernel, (1,), {}, 4, 2), "cuda:xy")


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(HeadscopeError, match="pip install triton"):
        compile_call(Call(object(), (1,), {}, 4, 2), "cuda:90")


def facts(target: str, head_size: int) -> dict[str, dict[str, Any]]:
    """Compile the variants of one head size and say what matters of each."""
    import torch

    from headscope.kernels.triton import catalogue

    dtype = getattr(torch, SHAPES[head_size])
    planned = catalogue.calls(head_size, dtype, length=1024, heads=4, kv_heads=2, target=target)
    found = {}
    for name, call in planned.items():
        if name in FEW or (head_size == next(iter(SHAPES)) and name not in LESS):
            built = compile_call(call, target)
            whole, loop = built.mix(loop=False), built.instructions(loop=True)
            found[name] = {
                "shared": built.shared,
                "registers": built.registers,
                "spilled": built.spilled,
                "local": built.local + whole["local load"] + whole["local store"],
                "parked": (loop["v_readlane_b32"] + loop["v_writelane_b32"]) / loop.total() if built.parked else 0,
                "tensor": sum(k for i, k in loop.items() if assembly.kind(i) == "tensor"),
                "widest": built.widest(),
            }
    return found


def faults(name: str, fact: dict[str, Any], target: str) -> list[str]:
    """Return what is wrong with one kernel."""
    wrong = []
    if fact["spilled"] or fact["local"]:
        wrong.append(f"spills {fact['spilled']} bytes, {fact['local']} of local memory")
    if fact["parked"] > PARKED:
        wrong.append("moves scalar registers out and back in its loop")
    if fact["shared"] > SHARED_LIMIT[target]:
        wrong.append(f"needs {fact['shared']} bytes of shared memory of {SHARED_LIMIT[target]}")
    if not fact["tensor"] and name not in WITHOUT_TENSOR_CORES:
        wrong.append("has no tensor instructions in its loop")
    if fact["widest"] < VECTOR:
        wrong.append(f"loads at most {fact['widest']} bytes at once")
    return [f"{name}: {fault}" for fault in wrong]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("head_size", SHAPES)
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_are_sound_machine_code(target: str, head_size: int, tmp_path: Path) -> None:
    clean = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, __file__, target, str(head_size)],
        env=clean | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    found = json.loads(ran.stdout)
    assert "plain" in found
    wrong = [fault for name, fact in found.items() for fault in faults(name, fact, target)]
    assert not wrong, "\n".join(wrong)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts(sys.argv[1], int(sys.argv[2]))))
