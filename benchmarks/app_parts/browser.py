"""What a browser takes, and numbers in few."""

from __future__ import annotations

from typing import Any

import psutil

SIZE = {"width": 1280, "height": 800}
ROOM = "--js-flags=--max-old-space-size=4096"
"""Option of Chromium: as much memory for a page as it can have."""


def largest_renderer() -> int:
    """Return the resident memory of the largest renderer process, in bytes."""
    sizes = [0]
    for process in psutil.process_iter(["cmdline"]):
        if "--type=renderer" in " ".join(process.info["cmdline"] or ()):
            try:
                sizes.append(process.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
    return max(sizes)


def median(values: list[float]) -> float:
    """Return the middle value."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def summary(values: list[float]) -> dict[str, float | int]:
    """Return the median, the 95th percentile and the largest of some milliseconds."""
    ordered = sorted(values)
    at = min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))
    return {"n": len(ordered), "median": median(ordered), "p95": ordered[at], "max": ordered[-1]}


def told(error: Any) -> str:
    """Return the first line of what went wrong, or its kind if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
