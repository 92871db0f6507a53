"""What was found: written to a file, printed and drawn."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from .cases import Job
from .variants import HEADS, KV_HEADS, VARIANTS


class Results:
    """Everything found so far, written to a file as it comes."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.lock, self.written = path, threading.Lock(), 0.0
        self.data: dict[str, Any] = {"about": {}, "ceilings": {}, "checks": [], "long": [], "times": [], "skipped": []}

    def add(self, part: str, result: Job) -> None:
        with self.lock:
            self.data[part].append(result)
            if time.monotonic() - self.written > 3:
                self.write()

    def write(self) -> None:
        self.written = time.monotonic()
        if self.path is not None:
            spare = self.path.with_suffix(".part")
            spare.write_text(json.dumps(self.data, indent=1))
            spare.replace(self.path)


def fractions(found: Job, data: dict[str, Any]) -> Job:
    """Add what part of the roofline was reached: of the product for long calls, of the memory for decoding."""
    if "ms" not in found:
        return found
    sheet = data["about"].get("datasheet")
    decode = "decode" in found["variant"]
    work = 4 * KV_HEADS * found["head_size"] * found["length"]  # bytes of keys and values
    if not decode:
        work = 4 * HEADS * found["head_size"] * found["length"] ** 2 / 2
    rate = work / found["ms"] / 1e9
    top = data["ceilings"].get("terabytes" if decode else "tflops")
    found["terabytes" if decode else "tflops"] = rate
    found["of_measured"] = rate / top if top else None
    found["of_datasheet"] = rate / sheet[decode] if sheet else None
    return found


def note(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def short(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def print_times(data: dict[str, Any], size: int) -> None:
    """A line for each variant: milliseconds and × flash at each length; the rest at the longest that plain reached."""
    cells = {(t["variant"], t["length"]): t for t in data["times"] if t["head_size"] == size}
    lengths = sorted({length for _, length in cells})
    plain = [n for n in lengths if "ms" in cells.get(("plain", n), {})]
    if not lengths:
        return
    print(f"\nhead size {size}, bf16, {HEADS} heads, {KV_HEADS} key heads, causal: ms and × flash SDPA")
    end = plain[-1] if plain else lengths[-1]
    print(f"{'':23}" + "".join(f"{short(n):>13}" for n in lengths) + f" | {short(end)}: × plain  % peak    MiB")
    for name in VARIANTS:
        line = f"{name:23}"
        for n in lengths:
            found = cells.get((name, n), {})
            base = cells.get(("decode flash" if "decode" in name else "flash", n), {}).get("ms")
            text = {"error": "error", "refused": "refused", "skipped": "-"}
            word = next((w for key, w in text.items() if key in found), "-")
            ms = found.get("ms")
            line += f"{word:>13}" if ms is None else f"{ms:>8.3f}" + (f"{ms / base:>5.2f}" if base else " " * 5)
        found, base = cells.get((name, end), {}), cells.get(("decode plain" if "decode" in name else "plain", end), {})
        if "ms" in found:
            factor = f"{found['ms'] / base['ms']:.2f}" if "ms" in base else ""
            part = f"{100 * found['of_measured']:.0f}" if found.get("of_measured") else ""
            line += f" | {factor:>13} {part:>7} {found['bytes'] / 2**20:>6.0f}"
        print(line)


def summary(data: dict[str, Any]) -> bool:
    """Print what was found and return whether there were checks, and all passed."""
    checked = [c for c in data["checks"] + data["long"] if "skipped" not in c]
    failed = [c for c in checked if not c.get("ok")]
    compared = sum(len(a.get("errors", ())) for c in checked for a in c.get("asked", [c]))
    refused = Counter(a["refused"] for c in data["checks"] for a in c.get("asked", []) if "refused" in a)
    for size in sorted({t["head_size"] for t in data["times"]}):
        print_times(data, size)
    print()
    for part in ("about", "ceilings"):
        kept = {k: v for k, v in data[part].items() if k not in ("do", "seconds")}
        print(f"{part}: " + ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in kept.items()))
    errors: dict[str, str] = {}
    for t in data["times"]:
        if "error" in t or "refused" in t:
            errors.setdefault(f"{t['variant']}: {t.get('error') or t.get('refused')}"[:300], short(t["length"]))
    for text, where in list(errors.items())[:10]:
        print(f"{where}, {text}")
    for why in data["skipped"][:4]:
        print(f"skipped: {why}")
    if len(data["skipped"]) > 4:
        print(f"skipped: {len(data['skipped']) - 4} more, in the file")
    for why, times in refused.most_common(5):
        print(f"refused {times} times: {why}")
    for c in failed[:12]:
        print(f"FAILED {c.get('case') or {k: c[k] for k in ('length', 'head_size')}}: {reason(c)}"[:600])
    passed = len(checked) - len(failed)
    print(f"{passed} of {len(checked)} checks passed: {compared} comparisons, {refused.total()} refused")
    return bool(checked) and not failed


def reason(found: Job) -> str:
    """Why a check failed."""
    if "error" in found:
        return str(found["error"])
    parts = []
    for a in found.get("asked", [found]):
        for stat, e in a.get("errors", {}).items():
            if not e["ok"]:
                error = "missing, NaN or infinite" if e["error"] is None else f"{e['error']:.2e}"
                parts.append(f"{a.get('ask', 'long')}/{stat} {error} > {e['bound']:.2e}")
    return "; ".join(parts)


def plot(data: dict[str, Any], path: Path) -> None:
    """Time over length, and what captures cost, for the first head size."""
    try:
        import matplotlib
    except ImportError:
        note("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    times = [t for t in data["times"] if "ms" in t]
    size = max((t["head_size"] for t in times if t["head_size"] <= 128), default=0)
    at = {(t["variant"], t["length"]): t["ms"] for t in times if t["head_size"] == size}
    lengths = sorted({length for _, length in at})
    figure, axes = pyplot.subplots(1, 3, figsize=(16, 4.6))
    extra = ("lse", "entropy", "masses", "top", "all", "received", "edit two groups")
    drawn = (
        ("one forward, ms", None, ("flash", "cudnn", "flex", "plain", "all", "eager")),
        ("× the plain Triton forward", "plain", extra),
        ("one decoding step, ms", None, tuple(n for n in VARIANTS if n.startswith("decode"))),
    )
    for axis, (title, base, names) in zip(axes, drawn, strict=True):
        for name in names:
            both = [n for n in lengths if (name, n) in at and (not base or (base, n) in at)]
            points = [(n, at[name, n] / (at[base, n] if base else 1)) for n in both]
            axis.plot(*zip(*points, strict=True), marker="o", label=name) if points else None
        axis.set(title=title, xlabel="tokens", xscale="log", yscale="linear" if base else "log")
        axis.set_xticks(lengths, [short(n) for n in lengths])
        axis.minorticks_off()
        axis.legend(fontsize=8)
    setting = f"bf16, {HEADS} heads, {KV_HEADS} key heads, head size {size}, causal"
    figure.suptitle(f"{data['about'].get('device')}, {setting}")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
