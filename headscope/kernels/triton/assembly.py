"""Machine code of NVIDIA and AMD GPUs, read: instructions by kind, loops, and the loop that matters.

SASS is what ``cuobjdump -sass`` prints, AMD code what the compiler writes. Counts are static, per warp. Names are the
machine's, but that Hopper's HGMMA gets ``.SS`` or ``.RS`` for a left operand in shared memory or in registers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_SASS_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.+?)\s*;")
_SASS_LABEL = re.compile(r"^\s*(\.L_\w+):")
_SASS_TARGET = re.compile(r"(0x[0-9a-f]+)|`\((\.L_\w+)\)")
_AMD_LABEL = re.compile(r"^([.\w$]+):")
_AMD_LINE = re.compile(r"^\s+([a-z]\w+)\b([^;]*)")
_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")
_WARPGROUP = 4
_HMMA = {
    "884": 8 * 8 * 4,
    "1684": 16 * 8 * 4,
    "1688": 16 * 8 * 8,
    "16816": 16 * 8 * 16,
    "16832": 16 * 8 * 32,
    "16864": 16 * 8 * 64,
}

# Kinds in the order in which they are tried: the first pattern that matches the start of the name decides.
_NVIDIA = (
    ("tensor", r"([HIDBQO]|HG|IG|QG|BG|UTC[HIQO])MMA\b"),
    ("exp", r"MUFU\.EX2"),
    ("special", r"MUFU|F2F\b|I2F\b|F2I\b|FRND|POPC|FLO\b|BREV"),
    ("fma", r"(FFMA|FADD|FMUL|HFMA2|HADD2|HMUL2|FFMA2|FADD2|FMUL2)(32I)?\b|FSWZADD"),
    ("multiply", r"IMAD|IMUL|IDP"),
    ("minmax", r"FMNMX|V?IMNMX|V?HMNMX"),
    ("convert", r"F2FP|I2FP|F2IP|I2IP"),
    ("select", r"[FHIP]+SETP|[FHI]SET\b|FSEL|SEL\b|PLOP3|P2R|R2P|FCHK|VOTE|HSETP2|HSET2"),
    ("shuffle", r"SHFL|C?REDUX|MOVM"),
    ("copy", r"LDGSTS|UBLKCP|UBLKPF|UTMA(LDG|STG|PF|REDG)"),
    ("global load", r"(LDG|LD)\b"),
    ("global store", r"(STG|ST)\b"),
    ("shared load", r"LDSM?\b"),
    ("shared store", r"STSM?\b"),
    ("local load", r"LDL\b"),
    ("local store", r"STL\b"),
    ("tensor memory", r"LDTM|STTM|LDT\b|STT\b|UTCCP"),
    ("atomic", r"ATOM|RED"),
    ("constant", r"U?LDCU?\b"),
    (
        "barrier",
        r"BAR\b|DEPBAR|LDGDEPBAR|LDTRAM|WARP|SYNCS|MEMBAR|FENCE|ERRBAR|CCTL|ARRIVES|UTCBAR|UTMA|UCGA|NANOSLEEP",
    ),
    ("control", r"BRA|BRX|JM[PX]|CALL|RET\b|EXIT|BSSY|BSYNC|BREAK|YIELD|NOP|BMOV|ACQBULK|ELECT|PREEXIT"),
    ("move", r"(MOV|MOV32I|R2UR|CS2R|S2R|S2UR)\b"),
    ("uniform", r"U[A-Z]"),
    ("integer", r"V?I?ADD|IABS|LEA|LOP|SH[FLR]|SGXT|BMSK|PRMT|ISCADD|VABSDIFF|BFE|BFI|VIADD|XMAD"),
)
_AMD = (
    ("tensor", r"v_(mfma|smfmac)"),
    ("exp", r"v_exp_"),
    ("special", r"v_(rcp|log|rsq|sqrt|sin|cos)"),
    ("shuffle", r"ds_(b?permute|swizzle)|v_permlane|v_mov_b32_dpp"),
    ("fma", r"v_(pk_)?(fma|fmac|fmaak|fmamk|mad|mac|mul|add|sub|subrev|ldexp)(_legacy)?_(mix\w*|b?f\d+)|v_dot\d"),
    ("minmax", r"v_(pk_)?(max|min|med)"),
    ("convert", r"v_(cvt|pack)"),
    ("select", r"v_(cmpx?|cndmask)"),
    ("move", r"v_(mov|pk_mov|accvgpr|swap|readlane|readfirstlane|writelane)"),
    ("integer", r"v_"),
    ("copy", r"(global|buffer)_load_lds|buffer_load_\w+_lds"),
    ("global load", r"(global|buffer|flat)_load"),
    ("global store", r"(global|buffer|flat)_store"),
    ("local load", r"scratch_load"),
    ("local store", r"scratch_store"),
    ("shared load", r"ds_(read|load)"),
    ("shared store", r"ds_(write|store)"),
    ("atomic", r"ds_|(global|buffer|flat)_atomic"),
    ("constant", r"s_(buffer_)?load"),
    ("barrier", r"s_(barrier|waitcnt|sleep|wakeup)|buffer_(wbl2|inv)"),
    ("control", r"s_(c?branch|endpgm|nop|setprio|setpc|swappc|getpc|call|code_end|trap|sethalt)"),
    ("uniform", r"s_"),
)
KINDS = (*dict.fromkeys(kind for kind, _ in _NVIDIA + _AMD), "other")
"""Kinds of instructions, in the order of reports."""
_PATTERNS = {
    False: [(kind, re.compile(pattern)) for kind, pattern in _NVIDIA],
    True: [(kind, re.compile(pattern)) for kind, pattern in _AMD],
}


@dataclass(frozen=True)
class Instruction:
    """One instruction: its full name, which one it may jump to, and whether the next one may follow it."""

    name: str
    target: int | None = None
    falls: bool = True


def kind(name: str) -> str:
    """Return the kind of an instruction, SASS in capitals and AMD in small letters: one of ``KINDS``."""
    return next((k for k, pattern in _PATTERNS[name[:1].islower()] if pattern.match(name)), "other")


def multiply_adds(name: str) -> int:
    """Return the multiply-adds that one warp gets out of a tensor instruction; 0 where its name does not say."""
    if kind(name) != "tensor":
        return 0
    shape = _SHAPE.search(name)
    if shape is None:
        return next((_HMMA[part] for part in name.split(".")[1:] if part in _HMMA), 0)
    blocks = re.search(r"_(\d+)b_", name)
    each = math.prod(map(int, shape.groups())) * (int(blocks[1]) if blocks else 1)
    return each if name[:1].islower() else each // _WARPGROUP


def tensor_operands(name: str) -> int:
    """Return the bytes of shared memory that a tensor instruction of Hopper reads for one warp; others read none."""
    shape = _SHAPE.search(name)
    if not name.startswith("HGMMA") or shape is None:
        return 0
    rows = int(shape[2]) + (int(shape[1]) if name.endswith(".SS") else 0)
    return 32 * rows // _WARPGROUP


def width(name: str) -> int:
    """Return how many bytes a load, store or copy moves for each lane; 4 where its name does not say."""
    if name[:1].islower():
        size = re.search(r"dwordx?(\d*)|_b(\d+)|_(?:u|i|s)?(byte|short|u8|i8|u16|i16)", name)
        if size is None:
            return 4
        twice = 2 if re.match(r"ds_(read|write)2", name) else 1
        if size[3]:
            return 1 if size[3] in ("byte", "u8", "i8") else 2
        return twice * (int(size[2]) // 8 if size[2] else 4 * int(size[1] or 1))
    parts = name.split(".")
    if parts[0] in ("LDSM", "STSM"):
        return 4 * int(parts[-1]) if parts[-1].isdigit() else 4
    sizes = {"128": 16, "64": 8, "U8": 1, "S8": 1, "U16": 2, "S16": 2}
    return next((sizes[part] for part in parts[1:] if part in sizes), 4)


def sass(text: str) -> list[Instruction]:
    """Read the first function of a SASS listing."""
    lines: list[tuple[int, str]] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if found := _SASS_LINE.match(line):
            if lines and int(found[1], 16) == 0:
                break
            lines.append((int(found[1], 16), found[2]))
        elif found := _SASS_LABEL.match(line):
            labels[found[1]] = len(lines)
    places = {hex(address): index for index, (address, _) in enumerate(lines)} | labels
    return [_sass_instruction(line, places) for _, line in lines]


def _sass_instruction(line: str, places: dict[str, int]) -> Instruction:
    guarded = line.startswith("@")
    name, _, operands = (line.split(None, 1)[1] if guarded else line).partition(" ")
    guarded = guarded and not line.startswith("@PT ")
    base = name.split(".")[0]
    if base == "HGMMA":
        return Instruction(f"{name}.{'SS' if operands.split(',')[1].strip().startswith('gdesc') else 'RS'}")
    if base in ("EXIT", "RET"):
        return Instruction(name, falls=guarded)
    if base not in ("BRA", "JMP"):
        return Instruction(name)
    found = _SASS_TARGET.search(operands)
    target = places.get(found[1] or found[2]) if found else None
    alone = found is not None and not operands[: found.start()].strip() and ".DIV" not in name and ".CONV" not in name
    return Instruction(name, target, falls=guarded or not alone)


def amdgcn(text: str) -> list[Instruction]:
    """Read the first function of AMD assembly."""
    lines: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if found := _AMD_LABEL.match(line):
            if found[1].startswith(".Lfunc_end"):
                break
            labels[found[1]] = len(lines)
        elif found := _AMD_LINE.match(line):
            lines.append((found[1], found[2].strip()))
    made = []
    for name, operand in lines:
        if name.startswith(("s_branch", "s_cbranch")):
            made.append(Instruction(name, labels.get(operand), falls=name != "s_branch"))
        else:
            made.append(Instruction(name, falls=name != "s_endpgm"))
    return made


class Flow:
    """Basic blocks of a function, its loops, and ways through them.

    Parameters
    ----------
    code
        The instructions of the function.
    """

    def __init__(self, code: list[Instruction]) -> None:
        starts = {0} | {i.target for i in code if i.target is not None}
        starts |= {n + 1 for n, i in enumerate(code) if (i.target is not None or not i.falls) and n + 1 < len(code)}
        begins = sorted(starts)
        self.blocks = [code[a:b] for a, b in zip(begins, [*begins[1:], len(code)], strict=True)]
        where = {begin: n for n, begin in enumerate(begins)}
        self.next: list[list[int]] = []
        for n, block in enumerate(self.blocks):
            follows = [where[block[-1].target]] if block and block[-1].target is not None else []
            if block and block[-1].falls and n + 1 < len(self.blocks):
                follows.append(n + 1)
            self.next.append(follows)
        self.order = self._order()
        self._rank = {n: place for place, n in enumerate(self.order)}
        self.loops = self._loops()

    def _order(self) -> list[int]:
        """Blocks that can be reached, in reverse postorder."""
        done: list[int] = []
        seen, stack = {0}, [(0, iter(self.next[0]))]
        while stack:
            n, rest = stack[-1]
            if (follows := next(rest, None)) is None:
                done.append(n)
                stack.pop()
            elif follows not in seen:
                seen.add(follows)
                stack.append((follows, iter(self.next[follows])))
        return done[::-1]

    def _before(self) -> dict[int, list[int]]:
        before: dict[int, list[int]] = {n: [] for n in self.order}
        for n in self.order:
            for follows in self.next[n]:
                before[follows].append(n)
        return before

    def _loops(self) -> dict[int, frozenset[int]]:
        """Blocks of each natural loop, by its first."""
        before = self._before()
        dominators: dict[int, set[int]] = {n: set(self.order) for n in self.order} | {0: {0}}
        changed = True
        while changed:
            changed = False
            for n in self.order[1:]:
                found = set.intersection(*(dominators[m] for m in before[n])) | {n}
                changed |= found != dominators[n]
                dominators[n] = found
        loops: dict[int, frozenset[int]] = {}
        for n in self.order:
            for head in self.next[n]:
                if head in dominators[n]:
                    loops[head] = loops.get(head, frozenset()) | self._body(head, n, before)
        return loops

    @staticmethod
    def _body(head: int, last: int, before: dict[int, list[int]]) -> frozenset[int]:
        body, stack = {head, last}, [last] if last != head else []
        while stack:
            for m in before[stack.pop()]:
                if m not in body:
                    body.add(m)
                    stack.append(m)
        return frozenset(body)

    def instructions(self, blocks: Iterable[int]) -> Counter[str]:
        """Return how often each instruction stands in these blocks."""
        return Counter(i.name for n in blocks for i in self.blocks[n])

    def hottest(self) -> int | None:
        """Return the head of the innermost loop with the most tensor work; of equals, of the one that does less else.

        Without tensor instructions in any loop: the innermost loop with the most exponentials, then the longest.
        """
        found = {head: _weights(self.instructions(body)) for head, body in self.loops.items()}
        for measure in (0, 1, 2):
            working = {head: self.loops[head] for head in found if found[head][measure]}
            inner = [a for a, body in working.items() if not any(other < body for other in working.values())]
            if inner:
                return max(inner, key=lambda head: (found[head][measure], -found[head][2]))
        return None

    def shortest(self, head: int) -> list[int]:
        """Return the blocks of a turn of a loop that skips what can be skipped, but no tensor work."""
        best: dict[int, tuple[tuple[int, int], list[int]]] = {}
        for n in sorted(self.loops[head], key=self._rank.__getitem__):
            tensor, _, other = _weights(self.instructions([n]))
            came = [best[m] for m in best if n in self.next[m]]
            (work, rest), path = max(came, key=lambda way: way[0]) if came and n != head else ((0, 0), [])
            best[n] = ((work + tensor, rest - other), [*path, n])
        return max((best[n] for n in best if head in self.next[n]), key=lambda way: way[0])[1]


def _weights(names: Counter[str]) -> tuple[int, int, int]:
    """Tensor instructions, exponentials and all others."""
    kinds: Counter[str] = Counter()
    for name, n in names.items():
        kinds[kind(name)] += n
    return kinds["tensor"], kinds["exp"], kinds.total() - kinds["tensor"]
